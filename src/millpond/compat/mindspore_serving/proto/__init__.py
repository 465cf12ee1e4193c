"""`mindspore_serving.proto`: the messages and the stub, for clients that use them directly."""
