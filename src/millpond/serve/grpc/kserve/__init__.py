"""The Open Inference Protocol over gRPC, as a Triton server speaks it.

Messages are in `serve/proto`; what it shares with HTTP is in `serve/kserve`.
"""
