"""`Contract`: one way to call a servable, its typed inputs and outputs, as every description needs it.

Made from a configuration alone, so whatever back end made that (a class, a Triton model, MindSpore methods, a language
model) is described alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Contract:
    """One method.

    Attributes:
        name: What requests call it; "" for a servable without methods.
        inputs: Of one instance, without a batch dimension. A datatype of "" takes any tensor.
        outputs: Likewise.
        has_batch: Whether a request of the inference protocol puts a batch dimension before the others.
        streams: Whether a request has any number of responses.
        documentation: What its author wrote.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    has_batch: bool = False
    streams: bool = False
    documentation: str = ""


def default_contract(config: ServableConfig) -> Contract | None:
    """Returns how a servable is called where no method is named; None where one must be."""
    if not config.inputs and config.methods:
        return None
    first = config.methods[0] if config.methods else None
    return Contract(
        "",
        config.inputs,
        config.outputs,
        has_batch=config.max_batch_size > 0,
        streams=config.decoupled,
        documentation=first.documentation if first is not None else "",
    )


def method_contracts(config: ServableConfig) -> list[Contract]:
    """Returns the methods of a servable, none for one without."""
    return [
        Contract(
            method.name,
            _typed(method.inputs, method.specs),
            _typed(method.outputs, method.output_specs),
            streams=method.streams,
            documentation=method.documentation,
        )
        for method in config.methods
    ]


def summarize(config: ServableConfig, version: int) -> dict[str, object]:
    """Returns what is known of a servable as a document."""
    default = default_contract(config)
    contracts = method_contracts(config) or ([default] if default is not None else [])
    return {
        "name": config.name,
        "version": str(version),
        "backend": config.backend or "ensemble",
        "max_batch_size": config.max_batch_size,
        "methods": [_summary(contract) for contract in contracts],
    }


def _typed(names: tuple[str, ...], specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    known = {spec.name: spec for spec in specs}
    return tuple(known.get(name, TensorSpec(name, "", (-1,))) for name in names)


def _summary(contract: Contract) -> dict[str, object]:
    return {
        "name": contract.name,
        "inputs": [_tensor(spec) for spec in contract.inputs],
        "outputs": [_tensor(spec) for spec in contract.outputs],
        "streams": contract.streams,
        "documentation": contract.documentation,
    }


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.dims), "optional": spec.optional}
