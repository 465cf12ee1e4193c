"""gRPC adapters: a protocol a folder. Only these modules import grpc."""
