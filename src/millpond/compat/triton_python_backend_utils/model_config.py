"""`ModelConfig`, which `auto_complete_config` fills in, and questions to a configuration as `initialize` gets it.

Texts of errors are those that Triton's users know.
"""

from __future__ import annotations

import json
from typing import Any

Document = dict[str, Any]
_TENSOR_FIELDS = ("name", "data_type", "dims")


class ModelConfig:
    """A model's configuration while it is being completed.

    Args:
        model_config: The configuration as JSON.
    """

    def __init__(self, model_config: str) -> None:
        self._model_config: Document = json.loads(model_config)

    def as_dict(self) -> Document:
        """Returns the configuration; not to be changed."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Sets the largest batch.

        Raises:
            ValueError: The configuration names a larger one.
        """
        configured = self._model_config.get("max_batch_size", 0)
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in auto-complete-config function for "
                f"model '{self._name}' specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Switches dynamic batching on, unless it is.

        Raises:
            ValueError: The model has another scheduler.
        """
        for scheduler in ("sequence_batching", "ensemble_scheduling"):
            if scheduler in self._model_config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{scheduler}', but auto-complete-config function "
                    f"for model '{self._name}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Document) -> None:
        """Sets whether the model is decoupled.

        Raises:
            ValueError: A field is unknown, or the configuration says otherwise.
        """
        for field in transaction_policy_dict:
            if field != "decoupled":
                raise ValueError(
                    "model transaction property in auto-complete-config function for model "
                    f"'{self._name}' contains property other than 'decoupled'"
                )
        if "decoupled" not in transaction_policy_dict:
            return
        policy = self._model_config.get("model_transaction_policy", {})
        if policy.get("decoupled") and not transaction_policy_dict["decoupled"]:
            raise ValueError(
                "trying to change decoupled property in auto-complete-config for model "
                f"'{self._name}', which is already set to 'true'."
            )
        self._model_config["model_transaction_policy"] = {"decoupled": transaction_policy_dict["decoupled"]}

    def add_input(self, input: Document) -> None:
        """Adds an input, or fills in one that the configuration only names.

        Raises:
            ValueError: It lacks a field, has one too many, or contradicts the configuration.
        """
        self._add("input", input, (*_TENSOR_FIELDS, "optional"))

    def add_output(self, output: Document) -> None:
        """Adds an output, or fills in one that the configuration only names.

        Raises:
            ValueError: It lacks a field, has one too many, or contradicts the configuration.
        """
        self._add("output", output, _TENSOR_FIELDS)

    @property
    def _name(self) -> str:
        return str(self._model_config.get("name", ""))

    def _add(self, kind: str, tensor: Document, allowed: tuple[str, ...]) -> None:
        where = f"in auto-complete-config function for model '{self._name}'"
        if "name" not in tensor:
            raise ValueError(f"{kind} {where} is missing 'name' property.")
        name = tensor["name"]
        for field in tensor:
            if field not in allowed:
                listed = ", ".join(f"'{field}'" for field in allowed[:-1])
                raise ValueError(f"{kind} '{name}' {where} contains property other than {listed} and '{allowed[-1]}'.")
        for field in _TENSOR_FIELDS:
            if field not in tensor:
                raise ValueError(f"{kind} '{name}' {where} is missing '{field}' property.")
        tensors = self._model_config.setdefault(kind, [])
        for known in tensors:
            if known["name"] == name:
                self._check_same(kind, known, tensor)
                known.update(tensor)
                return
        tensors.append(dict(tensor))

    def _check_same(self, kind: str, known: Document, tensor: Document) -> None:
        datatype = known.get("data_type", "TYPE_INVALID")
        if datatype not in ("TYPE_INVALID", tensor["data_type"]):
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {datatype} for {kind} "
                f"'{tensor['name']}', model provides {tensor['data_type']}"
            )
        dims = [int(size) for size in known.get("dims", [])]
        if dims and dims != list(tensor["dims"]):
            raise ValueError(
                f"model '{self._name}', tensor '{tensor['name']}': the model expects dims {list(tensor['dims'])} "
                f"but the model configuration specifies dims {dims}"
            )


def get_input_config_by_name(model_config: Document, name: str) -> Document | None:
    """Returns what a configuration says of an input, None when it has no such input."""
    return _by_name(model_config, "input", name)


def get_output_config_by_name(model_config: Document, name: str) -> Document | None:
    """Returns what a configuration says of an output, None when it has no such output."""
    return _by_name(model_config, "output", name)


def using_decoupled_model_transaction_policy(model_config: Document) -> bool:
    """Whether a request to the model may have any number of responses."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def _by_name(model_config: Document, kind: str, name: str) -> Document | None:
    return next((tensor for tensor in model_config.get(kind, []) if tensor["name"] == name), None)
