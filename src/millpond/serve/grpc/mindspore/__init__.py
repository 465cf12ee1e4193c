"""MindSpore Serving's gRPC protocol: `MSService.Predict`, and `PredictStream` beside it."""
