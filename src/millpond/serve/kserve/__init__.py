"""What the HTTP and the gRPC form of the Open Inference Protocol share, with Triton's extensions.

Tensors as raw bytes, parameters of requests, the server's answers as plain documents, shared memory, trace and log
settings. Nothing here knows HTTP or gRPC; `http/kserve` and `grpc/kserve` do, and call this.
"""
