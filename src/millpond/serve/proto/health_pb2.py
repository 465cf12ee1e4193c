# Written by tools/protos.py from proto/health/health.proto: change it there, then run `make protos`.
"""Messages of `grpc.health.v1`."""

from millpond.serve.proto.pool import load_messages

globals().update(
    load_messages(
        b"\x0a\x13health/health.proto\x12\x0egrpc.health.v1\x22.\x0a\x12HealthCheckRequest\x12\x18\x0a\x07service\x18"
        b"\x01 \x01(\x09R\x07service\x22\xb1\x01\x0a\x13HealthCheckResponse\x12I\x0a\x06status\x18\x01 \x01(\x0e21.grpc"
        b".health.v1.HealthCheckResponse.ServingStatusR\x06status\x22O\x0a\x0dServingStatus\x12\x0b\x0a\x07UNKNOWN\x10"
        b"\x00\x12\x0b\x0a\x07SERVING\x10\x01\x12\x0f\x0a\x0bNOT_SERVING\x10\x02\x12\x13\x0a\x0fSERVICE_UNKNOWN\x10\x03"
        b"2\xb2\x01\x0a\x06Health\x12R\x0a\x05Check\x12\x22.grpc.health.v1.HealthCheckRequest\x1a#.grpc.health.v1.Healt"
        b"hCheckResponse\x22\x00\x12T\x0a\x05Watch\x12\x22.grpc.health.v1.HealthCheckRequest\x1a#.grpc.health.v1.Health"
        b"CheckResponse\x22\x000\x01b\x06proto3"
    )
)
