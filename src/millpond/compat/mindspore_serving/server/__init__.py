"""The server side of MindSpore Serving's API."""
