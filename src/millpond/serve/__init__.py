"""Services over the engine: the HTTP API, its metrics, the chat page, and the process that runs them."""
