"""The flags of `text-generation-launcher`, and what each is here: a setting, nothing, or refused with the reason.

A table and the function that reads it; every flag has an environment variable of its name in capitals, which a flag on
the command line wins over. Used by the `text-generation-launcher` command and by `millpond serve --tgi-compat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import click

DEFAULT_PORT = 3000
_ON = frozenset(("true", "1", "yes", "on"))
_OFF = frozenset(("", "false", "0", "no", "off"))


@dataclass(frozen=True, slots=True)
class LauncherFlag:
    """One flag.

    Attributes:
        name: Without dashes before it.
        settings: The settings that get its value.
        idle: Why it changes nothing here.
        refused: Why it cannot be served.
        words: Values that mean something else here; a value that is missing goes through where there are settings.
        accepted: Values that are not refused although the flag is.
        is_switch: It has no value.
        short: Its short form.
        has_variable: The environment may set it.
    """

    name: str
    settings: tuple[str, ...] = ()
    idle: str = ""
    refused: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    accepted: frozenset[str] = frozenset()
    is_switch: bool = False
    short: str = ""
    has_variable: bool = True

    @property
    def variable(self) -> str:
        """The environment variable of the same meaning."""
        return self.name.upper().replace("-", "_")


_ONE_ENGINE = "one engine uses the processor's cores; --runtime.threads of millpond serve says how many"
_NO_GPU = "there is no GPU here"
_NO_HUB = "models come from a directory, a .gguf file or the registry of `millpond models`"
_NO_PHASES = "every step takes prompts and decoding sequences together"
_TRACES = "no traces are sent; /metrics has the numbers"
_ROPE = "the model's config.json says how positions are scaled"
_NO_TUNNEL = "no tunnel is opened; put a proxy before the port"

FLAGS = (
    LauncherFlag("model-id", ("model.path", "model.served_name")),
    LauncherFlag("revision", refused=f"{_NO_HUB}; a directory has no revisions", accepted=frozenset(("main",))),
    LauncherFlag("validation-workers", idle="the gateway's own threads tokenise"),
    LauncherFlag("sharded", idle=_ONE_ENGINE),
    LauncherFlag("num-shard", idle=_ONE_ENGINE),
    LauncherFlag(
        "quantize",
        ("model.dtype",),
        words={"eetq": "int8", "bitsandbytes": "int8"},
        refused="weights are quantised to int8 here (eetq, bitsandbytes), or come quantised in a .gguf file",
    ),
    LauncherFlag("speculate", ("speculation.max_tokens",), accepted=frozenset(("0",))),
    LauncherFlag(
        "dtype",
        ("model.dtype",),
        words={"float16": "auto", "bfloat16": "bfloat16", "float32": "float32"},
        refused="weights are float32, bfloat16 or int8 here (float16 chooses the fastest that is exact enough)",
    ),
    LauncherFlag("kv-cache-dtype", refused="the cache holds float32 or bfloat16; the engine chooses"),
    LauncherFlag("trust-remote-code", idle="a model's code is never run", is_switch=True),
    LauncherFlag("max-concurrent-requests", ("tgi.max_concurrent_requests",)),
    LauncherFlag("max-best-of", ("tgi.max_best_of",)),
    LauncherFlag("max-stop-sequences", ("tgi.max_stop_sequences",)),
    LauncherFlag("max-top-n-tokens", ("tgi.max_top_n_tokens",)),
    LauncherFlag("max-input-tokens", ("tgi.max_input_tokens",)),
    LauncherFlag("max-input-length", ("tgi.max_input_tokens",)),
    LauncherFlag("max-total-tokens", ("tgi.max_total_tokens",)),
    LauncherFlag("waiting-served-ratio", idle=_NO_PHASES),
    LauncherFlag("max-batch-prefill-tokens", ("scheduler.max_batch_tokens",)),
    LauncherFlag("max-batch-total-tokens", idle="the cache's size decides: --cache.bytes of millpond serve"),
    LauncherFlag("max-waiting-tokens", idle=_NO_PHASES),
    LauncherFlag("max-batch-size", ("scheduler.max_sequences",)),
    LauncherFlag("cuda-graphs", idle=_NO_GPU),
    # NOTE: not from the environment: every container and many shells have HOSTNAME, and it is no address to bind.
    LauncherFlag("hostname", ("tgi.host",), has_variable=False),
    LauncherFlag("port", ("tgi.port",), short="p"),
    LauncherFlag("prometheus-port", idle="/metrics is on the port itself"),
    LauncherFlag("shard-uds-path", ("tgi.shard_socket",)),
    LauncherFlag("master-addr", idle=_ONE_ENGINE),
    LauncherFlag("master-port", idle=_ONE_ENGINE),
    LauncherFlag("huggingface-hub-cache", idle=_NO_HUB),
    LauncherFlag("weights-cache-override", idle=_NO_HUB),
    LauncherFlag("disable-custom-kernels", idle="--runtime.executor of millpond serve chooses", is_switch=True),
    LauncherFlag("cuda-memory-fraction", idle=_NO_GPU),
    LauncherFlag("rope-scaling", refused=_ROPE),
    LauncherFlag("rope-factor", refused=_ROPE),
    LauncherFlag("json-output", idle="there is one form of log", is_switch=True),
    LauncherFlag("otlp-endpoint", idle=_TRACES),
    LauncherFlag("otlp-service-name", idle=_TRACES),
    LauncherFlag("cors-allow-origin", ("tgi.cors_allow_origin",)),
    LauncherFlag("api-key", ("tgi.api_key",)),
    LauncherFlag("watermark-gamma", idle="requests with a watermark are refused"),
    LauncherFlag("watermark-delta", idle="requests with a watermark are refused"),
    LauncherFlag("ngrok", refused=_NO_TUNNEL, is_switch=True),
    LauncherFlag("ngrok-authtoken", idle=_NO_TUNNEL),
    LauncherFlag("ngrok-edge", idle=_NO_TUNNEL),
    LauncherFlag("tokenizer-config-path", refused="give the template to millpond serve as --model.chat_template"),
    LauncherFlag("disable-grammar-support", ("tgi.grammar",), words={"true": "off"}, is_switch=True),
    LauncherFlag("max-client-batch-size", ("tgi.max_client_batch_size",)),
    LauncherFlag("lora-adapters", refused="one model without adapters is served; merge the adapter into the weights"),
    LauncherFlag("usage-stats", idle="nothing is ever sent"),
    LauncherFlag("payload-limit", ("tgi.max_body_bytes",)),
    LauncherFlag("enable-prefill-logprobs", idle="they are always there for requests that ask", is_switch=True),
    LauncherFlag("graceful-termination-timeout", ("serve.drain_timeout_s",)),
)


@dataclass(slots=True)
class Mapped:
    """What the flags come to.

    Attributes:
        settings: Millpond's settings, by path.
        notices: A line for each flag that was given and changes nothing.
    """

    settings: dict[str, object] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def map_flags(given: Mapping[str, str]) -> Mapped:
    """Maps flags, by name and with their values as text.

    Raises:
        click.UsageError: One of them cannot be served.
    """
    mapped = Mapped()
    for flag in FLAGS:
        value = given.get(flag.name)
        if value is not None and not (flag.is_switch and value.strip().lower() in _OFF):
            _map_flag(flag, "true" if flag.is_switch and value.strip().lower() in _ON else value, mapped)
    return mapped


def _map_flag(flag: LauncherFlag, value: str, mapped: Mapped) -> None:
    if value in flag.accepted:
        return
    if flag.idle:
        mapped.notices.append(f"--{flag.name} changes nothing: {flag.idle}.")
        return
    word = flag.words.get(value)
    if flag.refused and word is None:
        raise click.UsageError(f"--{flag.name} {value} cannot be served: {flag.refused}.")
    for path in flag.settings:
        mapped.settings[path] = word or value
    if word == "auto":
        mapped.notices.append(f"--{flag.name} {value} is taken as auto: there are no such kernels here.")
