"""Messages of the public gRPC contracts, generated from `proto/` by `tools/protos.py`; imports protobuf.

They live in a descriptor pool of their own (`pool.POOL`), so that a process can also hold the same messages as their
authors generated them: protobuf's default pool refuses a second file that defines a name.
"""
