"""The messages of `ms_service.proto`."""

from millpond.serve.proto.ms_service_pb2 import *  # noqa: F403 - another name for that module
