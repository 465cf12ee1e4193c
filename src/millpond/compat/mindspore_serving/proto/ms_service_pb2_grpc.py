"""The stub of `MSService`, as grpc's generator would write it."""

from __future__ import annotations

import grpc

from millpond.serve.proto import ms_service_pb2 as pb


class MSServiceStub:
    """Calls `Predict`.

    Args:
        channel: A gRPC channel.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self.Predict = channel.unary_unary(
            "/mindspore.serving.proto.MSService/Predict",
            request_serializer=pb.PredictRequest.SerializeToString,
            response_deserializer=pb.PredictReply.FromString,
        )
