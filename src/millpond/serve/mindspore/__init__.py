"""What both ports of the MindSpore Serving protocol share: values, calls, and sending a call's instances to servables.

`http.mindspore` and `grpc.mindspore` translate to these words; nothing here knows JSON or protobuf.
"""
