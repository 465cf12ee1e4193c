"""A FasterTransformer model folder: its parameters and config.ini as settings of our engine, and its tensors.

Owns the words of that back end's `config.pbtxt` and what they mean here; says clearly what is not served (BERT, T5,
converted checkpoints). Reads files, starts nothing.
"""

from __future__ import annotations

import configparser
from dataclasses import dataclass, replace
from pathlib import Path

from millpond.serve.backends.engine_model import check_single_instance, find_model, read_folder_file, settings_of
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import TensorSpec

MAX_BATCH_SIZE = 1024  # where a configuration says nothing
_QUEUE = 256  # the engine's own default, raised where whole batches of a model are larger
_DECODERS = ("gpt", "gpt-j", "gpt-neox", "gptj", "gptneox", "bloom", "opt", "llama", "mistral", "qwen2")
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "auto", "": "auto"}


@dataclass(frozen=True, slots=True)
class FtFolder:
    """What a folder asks for.

    Attributes:
        settings: Of the engine, by path.
        end_id: From config.ini; None takes the model's own.
    """

    settings: dict[str, object]
    end_id: int | None


def read_folder(config: ServableConfig, folder: ModelFolder) -> FtFolder:
    """Reads a model's parameters and its config.ini.

    Raises:
        ServableError: It asks for what is not served; the text says what to do.
    """
    checkpoint = config.parameters.get("model_checkpoint_path", "").strip()
    if not checkpoint:
        raise _invalid(config, "the parameter model_checkpoint_path is missing. Give the model's directory there.")
    path = find_model(checkpoint, folder)
    _check_checkpoint(config, Path(path))
    settings: dict[str, object] = {
        "model.path": path,
        "model.dtype": _dtype(config),
        "scheduler.max_queue": max(_QUEUE, config.max_batch_size),
    }
    return FtFolder(settings | settings_of(config), _end_id(config, folder))


def complete_config(config: ServableConfig) -> ServableConfig:
    """Returns the configuration with the tensors of the contract where it names none, and checks those it names.

    Raises:
        ServableError: It asks for a kind of model or of batching that is not served, or names other tensors.
    """
    _check_kind(config)
    if config.sequence_batching is not None:
        raise _invalid(config, "interactive generation (sequence_batching) is not served. Send whole prompts.")
    check_single_instance(config)
    inputs = {spec.name: spec for spec in INPUTS}
    for given, known, kind in ((config.inputs, inputs, "input"), (config.outputs, _OUTPUT_BY_NAME, "output")):
        for spec in given:
            _check_spec(config, spec, known, kind)
    missing = [spec.name for spec in INPUTS if not spec.optional] if config.inputs else []
    missing = [name for name in missing if name not in {spec.name for spec in config.inputs}]
    if missing:
        raise _invalid(config, f"its configuration has no input {missing[0]}, which every request needs.")
    return replace(
        config,
        inputs=config.inputs or INPUTS,
        outputs=config.outputs or OUTPUTS,
        max_batch_size=config.max_batch_size or MAX_BATCH_SIZE,
        instance_groups=config.instance_groups or (InstanceGroup(name=f"{config.name}_0"),),
    )


def _check_kind(config: ServableConfig) -> None:
    kind = config.parameters.get("model_type", "GPT").strip()
    if kind.lower() not in _DECODERS:
        raise _invalid(
            config,
            f"model_type {kind} is not served: only models that generate text from left to right are (GPT, GPT-J, "
            "GPT-NeoX; BLOOM is a GPT). Serve encoders and encoder-decoders with the onnx or python back end.",
        )


def _check_checkpoint(config: ServableConfig, path: Path) -> None:
    if path.is_dir() and not (path / "config.json").exists() and (path / "config.ini").exists():
        raise _invalid(
            config,
            "model_checkpoint_path holds a checkpoint that was converted for FasterTransformer. Give the Hugging Face "
            "directory that it was converted from.",
        )


def _dtype(config: ServableConfig) -> str:
    mode = config.parameters.get("int8_mode", "0").strip() or "0"
    if mode not in ("0", "1"):
        raise _invalid(config, f"int8_mode {mode} is not served. Use 0, or 1 for weights in int8.")
    if mode == "1":
        return "int8"
    kind = config.parameters.get("data_type", "").strip().lower()
    if kind not in _DTYPES:
        raise _invalid(config, f"data_type {kind} is not known. Use fp32, fp16 or bf16.")
    return _DTYPES[kind]


def _end_id(config: ServableConfig, folder: ModelFolder) -> int | None:
    text = read_folder_file(folder, "config.ini")
    if text is None:
        return None
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        parser.read_string(text.decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise _invalid(config, f"config.ini cannot be read: {str(error).splitlines()[0]}") from error
    for section in parser.sections():
        value = parser.get(section, "end_id", fallback=None)
        if value is not None:
            if not value.strip().isdecimal():
                raise _invalid(config, f"config.ini has the end_id {value!r}; it must be a token id.")
            return int(value)
    return None


def _check_spec(config: ServableConfig, spec: TensorSpec, known: dict[str, TensorSpec], kind: str) -> None:
    expected = known.get(spec.name)
    if expected is None:
        raise _invalid(config, f"the {kind} {spec.name} is not one of {', '.join(known)}.")
    if expected.datatype != spec.datatype and expected.name != "request_prompt_embedding":
        raise _invalid(config, f"the {kind} {spec.name} is {spec.datatype}; it must be {expected.datatype}.")


def _invalid(config: ServableConfig, text: str) -> ServableError:
    return ServableError("invalid_argument", f"Model '{config.name}': {text}")


def _optional(name: str, datatype: str, dims: tuple[int, ...] = (1,)) -> TensorSpec:
    return TensorSpec(name, datatype, dims, optional=True, reshape=() if dims == (1,) else None)


INPUTS = (
    TensorSpec("input_ids", "UINT32", (-1,)),
    TensorSpec("input_lengths", "UINT32", (1,), reshape=()),
    TensorSpec("request_output_len", "UINT32", (-1,)),
    _optional("runtime_top_k", "UINT32"),
    _optional("runtime_top_p", "FP32"),
    _optional("beam_search_diversity_rate", "FP32"),
    _optional("temperature", "FP32"),
    _optional("len_penalty", "FP32"),
    _optional("repetition_penalty", "FP32"),
    _optional("random_seed", "UINT64"),
    _optional("is_return_log_probs", "BOOL"),
    _optional("is_return_context_embeddings", "BOOL"),
    _optional("beam_width", "UINT32"),
    _optional("start_id", "UINT32"),
    _optional("end_id", "UINT32"),
    _optional("stop_words_list", "INT32", (2, -1)),
    _optional("bad_words_list", "INT32", (2, -1)),
    _optional("prompt_learning_task_name_ids", "UINT32"),
    _optional("request_prompt_embedding", "FP16", (-1, -1)),
    _optional("request_prompt_lengths", "UINT32"),
    _optional("request_prompt_type", "UINT32"),
    _optional("top_p_decay", "FP32"),
    _optional("top_p_min", "FP32"),
    _optional("top_p_reset_ids", "UINT32"),
)
OUTPUTS = (
    TensorSpec("output_ids", "UINT32", (-1, -1)),
    TensorSpec("sequence_length", "UINT32", (-1,)),
    TensorSpec("response_input_lengths", "INT32", (-1,)),
    TensorSpec("cum_log_probs", "FP32", (-1,)),
    TensorSpec("output_log_probs", "FP32", (-1, -1)),
    TensorSpec("context_embeddings", "FP32", (-1, -1)),
)
_OUTPUT_BY_NAME = {spec.name: spec for spec in OUTPUTS}
