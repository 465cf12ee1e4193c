"""What this machine and the native library can do for a model: what `resolve` has to know. Called where one loads."""

from __future__ import annotations

from millpond.api.model_spec import ModelSpec
from millpond.base.machine import read_machine
from millpond.config.resolve import Hardware
from millpond.inference.ops import native


def native_facts(spec: ModelSpec) -> tuple[Hardware, str]:
    """The machine, and why the native library cannot run this model; empty if it can."""
    machine = read_machine()
    rotary_dims = max((rope.rotary_dim for rope in (spec.rope, spec.rope_local) if rope is not None), default=0)
    obstacle = native.unsupported((spec.head_dim, spec.num_kv_heads), spec.hidden_size, rotary_dims)
    return Hardware(native.best_isa(), machine.usable_cores, machine.memory_available), obstacle
