"""gRPC over HTTP/2 on the event loop: frames and headers, connections, calls, and a server of generic handlers.

It answers what `grpc.aio` answers, with the same handlers, for a fraction of its time a call; docs/design/protocols.md
says what it leaves to `grpc.aio`. Knows no service.
"""
