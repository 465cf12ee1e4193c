"""The frameworks: one file and one line here each.

Keyed by our short name; `find_framework` also knows KubeDL's kind and Arena's short and trainer names.
"""

from __future__ import annotations

from millpond.jobs.frameworks import elasticdl, mars, mpi, notebook, plain, pytorch, serving, tf, xdl, xgboost
from millpond.jobs.frameworks.base import Address, Framework, Option, Replica, RoleRule

FRAMEWORKS: dict[str, Framework] = {
    framework.name: framework
    for framework in (
        pytorch.FRAMEWORK,
        tf.FRAMEWORK,
        mpi.FRAMEWORK,
        xgboost.FRAMEWORK,
        xdl.FRAMEWORK,
        mars.FRAMEWORK,
        elasticdl.FRAMEWORK,
        notebook.FRAMEWORK,
        plain.FRAMEWORK,
        serving.FRAMEWORK,
    )
}

__all__ = ["FRAMEWORKS", "Address", "Framework", "Option", "Replica", "RoleRule", "find_framework"]


def find_framework(name: str) -> Framework | None:
    """The framework called so: "pytorch", "PyTorchJob", "pytorchjob" or "py"."""
    folded = name.casefold()
    for framework in FRAMEWORKS.values():
        if folded in (framework.name, framework.kind.casefold(), framework.short):
            return framework
    return None
