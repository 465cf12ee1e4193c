"""`model.json`: the engine arguments of a vLLM model folder as settings of our engine.

Owns which argument is which setting, which mean nothing here and may stand there all the same, and which ask for
something that this engine does not do. Settings of ours may stand in the file too, by their path. Starts nothing.
"""

from __future__ import annotations

import json

from millpond.base.suggest import did_you_mean
from millpond.config.fields import setting_fields
from millpond.serve.backends.engine_model import find_model, read_folder_file, settings_of
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError

ARGUMENTS_FILE = "model.json"
_SETTINGS = {
    "max_model_len": "model.max_len",
    "tokenizer": "model.tokenizer",
    "chat_template": "model.chat_template",
    "max_num_seqs": "scheduler.max_sequences",
    "max_num_batched_tokens": "scheduler.max_batch_tokens",
    "block_size": "cache.block_size",
    "enable_prefix_caching": "cache.prefix",
    "kv_cache_memory_bytes": "cache.bytes",
    "seed": "runtime.seed",
}
_DTYPES = {"auto": "auto", "half": "auto", "float16": "auto", "float": "float32"}  # others are ours too
_CACHE_DTYPES = {"float16": "auto"}
# About GPUs, logging, and ways of loading: they change no output.
_WITHOUT_MEANING = frozenset(
    (
        "gpu_memory_utilization",
        "enforce_eager",
        "disable_log_requests",
        "enable_log_requests",
        "disable_log_stats",
        "max_log_len",
        "swap_space",
        "cpu_offload_gb",
        "trust_remote_code",
        "download_dir",
        "load_format",
        "tokenizer_mode",
        "max_logprobs",
        "device",
        "max_seq_len_to_capture",
        "distributed_executor_backend",
        "worker_use_ray",
        "disable_custom_all_reduce",
        "enable_chunked_prefill",
        "use_v2_block_manager",
        "served_model_name",
        "generation_config",
    )
)
# Only this value is served: it is what leaving the argument out means.
_ONLY: dict[str, tuple[object, ...]] = {
    "tensor_parallel_size": (1, "1"),
    "pipeline_parallel_size": (1, "1"),
    "data_parallel_size": (1, "1"),
    "quantization": (),
    "revision": (),
    "tokenizer_revision": (),
    "enable_lora": (False, "false"),
    "speculative_config": (),
}


def read_arguments(config: ServableConfig, folder: ModelFolder) -> dict[str, object]:
    """Returns a folder's settings of the engine, by path.

    Raises:
        ServableError: There is no `model.json`, or it asks for what this engine does not do.
    """
    text = read_folder_file(folder, ARGUMENTS_FILE)
    if text is None:
        raise _invalid(config, f'{folder.version}/{ARGUMENTS_FILE} is missing; it names the model: {{"model": "DIR"}}.')
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(config, f"{ARGUMENTS_FILE} is not JSON: {error}.") from error
    if not isinstance(arguments, dict):
        raise _invalid(config, f"{ARGUMENTS_FILE} must hold a JSON object.")
    given = {name: value for name, value in arguments.items() if value is not None}
    model = given.pop("model", None)
    if not isinstance(model, str) or not model:
        raise _invalid(config, f'{ARGUMENTS_FILE} must name the model: {{"model": "DIR"}}.')
    settings: dict[str, object] = {"model.path": find_model(model, folder)}
    for name, value in given.items():
        settings.update(_setting(config, name, value))
    for path in ("model.tokenizer", "model.chat_template"):
        if path in settings:
            settings[path] = find_model(str(settings[path]), folder)
    return settings | settings_of(config)


def _setting(config: ServableConfig, name: str, value: object) -> dict[str, object]:
    if name in _SETTINGS:
        return {_SETTINGS[name]: value}
    if name == "dtype":
        return {"model.dtype": _DTYPES.get(str(value), value)}
    if name == "kv_cache_dtype":
        return {"cache.dtype": _CACHE_DTYPES.get(str(value), value)}
    if name in setting_fields() and not name.startswith("serve."):
        return {name: value}
    if name in _ONLY:
        if value in _ONLY[name]:
            return {}
        raise _invalid(config, f"{ARGUMENTS_FILE} has {name} {json.dumps(value)}, which is not served. Leave it out.")
    if name in _WITHOUT_MEANING:
        return {}
    known = [*_SETTINGS, *_ONLY, *_WITHOUT_MEANING, *setting_fields(), "dtype", "kv_cache_dtype"]
    raise _invalid(config, f"{ARGUMENTS_FILE} has the unknown argument '{name}'. {did_you_mean(name, known)}".strip())


def _invalid(config: ServableConfig, text: str) -> ServableError:
    return ServableError("invalid_argument", f"Model '{config.name}': {text}")
