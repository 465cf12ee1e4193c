"""Writing a servable: a class with typed methods that every protocol serves.

See docs/guide/servables.md. Importing this needs numpy only, and starts nothing.
"""

from millpond.serving.declare import Model, Servable, method, pipeline, stage
from millpond.serving.types import Shape

__all__ = ["Model", "Servable", "Shape", "method", "pipeline", "stage"]
