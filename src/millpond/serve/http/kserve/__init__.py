"""The Open Inference Protocol over HTTP, as a Triton server speaks it.

`connection` and `port` are a small HTTP server of their own, because a request for a small tensor must not cost more
than the tensor; `router` and the modules beside it are the protocol. What it shares with gRPC is in `serve/kserve`.
"""
