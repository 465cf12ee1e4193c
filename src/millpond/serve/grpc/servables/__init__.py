"""The typed gRPC service of every servable, as its proto file describes it."""
