"""The client side of MindSpore Serving's API."""

from millpond.compat.mindspore_serving.client.client import Client, ClientGrpcAsyncResult, SSLConfig

__all__ = ["Client", "ClientGrpcAsyncResult", "SSLConfig"]
