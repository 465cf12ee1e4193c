"""Back ends: what runs a servable. One file a kind; `in_workers` makes those that run models in worker processes.

They start worker processes (`millpond.serve.workers`) and import neither torch nor onnxruntime themselves.
"""
