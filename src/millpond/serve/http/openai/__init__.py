"""The OpenAI protocol: requests in its shape become `millpond.api.request.Request`, events become its responses."""
