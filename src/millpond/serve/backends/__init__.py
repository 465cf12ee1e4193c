"""Back ends: what runs a servable. One file a kind; `calls` is how a model calls other servables.

They start worker processes (`millpond.serve.workers`) and import neither torch nor onnxruntime themselves.
"""
