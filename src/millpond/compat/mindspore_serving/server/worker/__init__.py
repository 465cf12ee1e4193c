"""What runs in the worker processes: a servable's file, its models, its stage functions. The gateway imports none."""
