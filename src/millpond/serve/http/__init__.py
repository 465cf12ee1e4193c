"""The HTTP front end. Adapters only translate; the engine is reached through `millpond.serve.gateway`."""
