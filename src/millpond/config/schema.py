"""The settings of Millpond: the one source for the config file, the command line, the help and the reference page.

`EngineConfig` is what a user asks for: everything optional, None means "you decide". `ResolvedConfig` (resolved.py) is
what runs. Only `resolve.py` turns one into the other. Every field carries its help in `Setting`; sections are
dataclasses, and a field's path (`cache.dtype`) is its flag (`--cache.dtype`) and its key in the TOML file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command line and the docs say about a field.

    Args:
        help: One sentence, unit included.
        alias: Short flags, e.g. ("--dtype",).
        default: What is used when it is not set, in words.
        secret: True when the value must never be printed.
        minimum: The smallest number allowed.
        maximum: The largest number allowed.
    """

    help: str
    alias: tuple[str, ...] = ()
    default: str = ""
    secret: bool = False
    minimum: float | None = None
    maximum: float | None = None


DTypeName = Literal["auto", "float32", "bfloat16", "int8", "w8a8", "int4"]
CacheDTypeName = Literal["auto", "float32", "bfloat16", "int8"]
ExecutorName = Literal["auto", "native", "reference"]
TgiFormName = Literal["compatible", "strict"]
MindsporeFormName = Literal["compatible", "strict"]
TritonFormName = Literal["compatible", "strict"]
TraceLevelName = Literal["OFF", "TIMESTAMPS", "TENSORS"]
RepositoryModeName = Literal["none", "poll", "explicit"]
SpeculationMode = Literal["auto", "off", "ngram", "draft"]
IsaName = Literal["auto", "amx", "avx512_bf16", "avx512", "avx2"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What to load."""

    path: Annotated[str | None, Setting("Directory, .gguf file or registry name.", ("--model",), "smollm2-135m")] = None
    dtype: Annotated[
        DTypeName | None,
        Setting(
            "Weights: float32, bfloat16, int8 (weight-only), w8a8 (activations in int8 too, per token) or int4 "
            "(a GGUF file's 4-bit blocks as they are, others quantised in groups of 32).",
            ("--dtype",),
            "auto: the fastest exact enough",
        ),
    ] = None
    tokenizer: Annotated[
        str | None, Setting("tokenizer.json to use instead of the model's own.", (), "the model's")
    ] = None
    chat_template: Annotated[str | None, Setting("File with a Jinja chat template.", (), "the model's")] = None
    served_name: Annotated[
        str | None, Setting("Name clients use for the model.", ("--name",), "the path's last part")
    ] = None
    max_len: Annotated[
        int | None,
        Setting(
            "Longest prompt plus output, tokens.", ("--max-len",), "the model's, cut to what the cache holds", minimum=1
        ),
    ] = None
    packed_bytes: Annotated[
        int | None,
        Setting(
            "Most disk space for weights kept packed, so that the next start maps them, bytes; 0: none are kept.",
            (),
            "32 GiB",
            minimum=0,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache."""

    dtype: Annotated[
        CacheDTypeName | None,
        Setting("Element type of the KV cache; int8 halves its memory.", (), "int8 for w8a8, else the model's"),
    ] = None
    block_size: Annotated[int | None, Setting("Tokens in a block: 32, 64 or 128.", (), "32", minimum=1)] = None
    bytes: Annotated[
        int | None,
        Setting("Size of the KV cache, bytes.", (), "a quarter of the free memory, 4 GiB at most", minimum=1),
    ] = None
    prefix: Annotated[bool | None, Setting("Reuse blocks of equal prompt prefixes.", (), "on")] = None


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """How requests share the engine."""

    max_batch_tokens: Annotated[int | None, Setting("Most tokens in one step.", (), "512", minimum=1)] = None
    max_sequences: Annotated[int | None, Setting("Most sequences in one step.", (), "64", minimum=1)] = None
    max_queue: Annotated[
        int | None, Setting("Most sequences waiting; past it 429 with Retry-After.", (), "256", minimum=0)
    ] = None


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """Guessing tokens ahead, so that one step gives several. Used only while it is measured to be faster."""

    mode: Annotated[
        SpeculationMode | None,
        Setting(
            "Where guesses come from: ngram (the text itself), draft (a smaller model) or off.",
            (),
            "auto: draft with a draft model; else ngram where it changes no token (runtime.deterministic), or off",
        ),
    ] = None
    max_tokens: Annotated[
        int | None, Setting("Most guesses for a sequence in one step.", (), "8", minimum=1, maximum=64)
    ] = None
    draft_model: Annotated[
        str | None, Setting("Smaller model with the same vocabulary: as model.path.", (), "none")
    ] = None
    draft_dtype: Annotated[
        DTypeName | None,
        Setting("Weights of the draft model: as model.dtype. The model's own in 4 bits guess well.", (), "the model's"),
    ] = None


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The machine."""

    executor: Annotated[
        ExecutorName | None, Setting("native ops or the torch reference.", (), "native where it was built")
    ] = None
    isa: Annotated[IsaName | None, Setting("Highest instruction set to use.", (), "the best this machine has")] = None
    threads: Annotated[
        int | None, Setting("Threads that compute a step.", ("--threads",), "the physical cores we may use", minimum=1)
    ] = None
    deterministic: Annotated[
        bool | None,
        Setting(
            "Same tokens for a request whatever else is in the batch (free with native ops).", (), "on with native ops"
        ),
    ] = None
    seed: Annotated[
        int | None, Setting("Seed for requests that bring none.", ("--seed",), "from the system", minimum=0)
    ] = None


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The HTTP server."""

    host: Annotated[str | None, Setting("Address to bind.", ("--host",), "127.0.0.1")] = None
    port: Annotated[
        int | None, Setting("Port to bind; 0 picks a free one.", ("--port",), "8000", minimum=0, maximum=65535)
    ] = None
    api_key_file: Annotated[
        str | None, Setting("File with one API key a line; requests must bring one.", (), "no key")
    ] = None
    request_timeout_s: Annotated[float | None, Setting("Deadline of a request, seconds.", (), "600", minimum=0)] = None
    drain_timeout_s: Annotated[
        float | None, Setting("Longest wait for running requests at shutdown, seconds.", (), "30", minimum=0)
    ] = None
    max_body_bytes: Annotated[int | None, Setting("Largest request body, bytes.", (), "4 MiB", minimum=1)] = None


@dataclass(frozen=True, slots=True)
class TgiConfig:
    """The port that speaks Text Generation Inference's protocol, and its shard socket."""

    port: Annotated[
        int | None, Setting("Port to bind; 0 picks a free one.", (), "the protocol is off", minimum=0, maximum=65535)
    ] = None
    host: Annotated[str | None, Setting("Address to bind.", (), "that of the server")] = None
    form: Annotated[
        TgiFormName | None,
        Setting("compatible: errors as TGI's; strict: proper status codes, no ignored fields.", (), "compatible"),
    ] = None
    shard_socket: Annotated[
        str | None, Setting("Prefix of the Unix socket on which a TGI router finds a shard.", (), "no socket")
    ] = None
    api_key: Annotated[
        str | None, Setting("Key that requests must bring.", (), "the server's keys, if it has some", secret=True)
    ] = None
    cors_allow_origin: Annotated[
        str | None, Setting("Origins whose pages may call, separated by commas.", (), "none")
    ] = None
    max_concurrent_requests: Annotated[
        int | None, Setting("Most requests at a time; past it 429.", (), "128", minimum=1)
    ] = None
    max_best_of: Annotated[int | None, Setting("Largest best_of.", (), "2", minimum=1)] = None
    max_stop_sequences: Annotated[int | None, Setting("Most stop sequences; at most 64.", (), "4", minimum=0)] = None
    max_top_n_tokens: Annotated[int | None, Setting("Largest top_n_tokens; at most 20.", (), "5", minimum=0)] = None
    max_input_tokens: Annotated[
        int | None, Setting("Longest prompt, tokens.", (), "one less than max_total_tokens", minimum=1)
    ] = None
    max_total_tokens: Annotated[
        int | None, Setting("Longest prompt plus output, tokens.", (), "what the engine holds", minimum=2)
    ] = None
    max_client_batch_size: Annotated[int | None, Setting("Most prompts in a request.", (), "4", minimum=1)] = None
    max_body_bytes: Annotated[int | None, Setting("Largest request body, bytes.", (), "2,000,000", minimum=1)] = None
    grammar: Annotated[bool | None, Setting("Whether requests may bring a grammar.", (), "on")] = None


@dataclass(frozen=True, slots=True)
class MindsporeConfig:
    """The ports that speak MindSpore Serving's protocol."""

    http_port: Annotated[
        int | None,
        Setting("Port of the REST protocol; 0 picks a free one.", (), "the protocol is off", minimum=0, maximum=65535),
    ] = None
    grpc_port: Annotated[
        int | None,
        Setting("Port of the gRPC protocol; 0 picks a free one.", (), "the protocol is off", minimum=0, maximum=65535),
    ] = None
    host: Annotated[str | None, Setting("Address to bind.", (), "that of the server")] = None
    form: Annotated[
        MindsporeFormName | None,
        Setting("compatible: REST errors have status 200, as the original's; strict: 4xx and 5xx.", (), "compatible"),
    ] = None
    max_message_mb: Annotated[int | None, Setting("Largest request, MiB.", (), "100", minimum=1, maximum=512)] = None
    max_enqueued_requests: Annotated[
        int | None, Setting("Most requests at a time; those beyond it are refused.", (), "10000", minimum=1)
    ] = None
    timeout_s: Annotated[int | None, Setting("Longest time a REST request may take.", (), "100", minimum=1)] = None


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """The ports that speak the Open Inference Protocol as a Triton server does."""

    http_port: Annotated[
        int | None,
        Setting("Port of HTTP; 0 picks a free one.", (), "8000 without a model beside it", minimum=0, maximum=65535),
    ] = None
    grpc_port: Annotated[
        int | None,
        Setting("Port of gRPC; 0 picks a free one.", (), "8001 without a model beside it", minimum=0, maximum=65535),
    ] = None
    metrics_port: Annotated[
        int | None,
        Setting("Port of metrics; 0 picks a free one.", (), "8002 without a model beside it", minimum=0, maximum=65535),
    ] = None
    host: Annotated[str | None, Setting("Address to bind.", (), "that of the server")] = None
    form: Annotated[
        TritonFormName | None,
        Setting("compatible: status codes as Triton's; strict: 4xx for every wrong request.", (), "compatible"),
    ] = None
    max_body_bytes: Annotated[int | None, Setting("Largest request, bytes.", (), "256 MiB", minimum=1)] = None
    server_name: Annotated[str | None, Setting("What the server calls itself.", (), "triton")] = None
    shared_memory: Annotated[
        bool | None, Setting("Whether clients may pass tensors in their shared memory.", (), "on")
    ] = None
    strict_readiness: Annotated[
        bool | None, Setting("Whether the server is ready only when all its models are.", (), "on")
    ] = None
    grpc_certificate: Annotated[
        str | None, Setting("PEM file with the certificate of gRPC; it is then served with TLS.", (), "none")
    ] = None
    grpc_key: Annotated[str | None, Setting("PEM file with the key of that certificate.", (), "none")] = None
    grpc_client_ca: Annotated[
        str | None, Setting("PEM file of the authority whose clients alone may use gRPC.", (), "none")
    ] = None
    http_restricted: Annotated[
        str | None,
        Setting("Parts of HTTP that ask for a header: CATEGORY,CATEGORY:KEY=VALUE, groups split by ';'.", (), "none"),
    ] = None
    grpc_restricted: Annotated[
        str | None, Setting("The same for gRPC; the metadata is triton-grpc-protocol-KEY.", (), "none")
    ] = None
    trace_file: Annotated[str | None, Setting("Where traces of requests are written.", (), "nowhere")] = None
    trace_level: Annotated[
        str | None, Setting("OFF, TIMESTAMPS, TENSORS, or both separated by ','; clients can change it.", (), "OFF")
    ] = None
    trace_rate: Annotated[int | None, Setting("One request of so many is traced.", (), "1000", minimum=0)] = None
    trace_count: Annotated[int | None, Setting("So many traces, then none; -1 is no end.", (), "-1", minimum=-1)] = None
    trace_log_frequency: Annotated[
        int | None, Setting("A new file, FILE.0, FILE.1 and so on, after so many traces.", (), "one file", minimum=0)
    ] = None


@dataclass(frozen=True, slots=True)
class RepositoryConfig:
    """The folder of models that are served beside, or instead of, a language model."""

    path: Annotated[
        str | None, Setting("Folder with a folder a model; several are separated by ':'.", ("--repository",), "none")
    ] = None
    mode: Annotated[
        RepositoryModeName | None,
        Setting("none: all models, once; poll: follow the folder; explicit: load when asked.", (), "none"),
    ] = None
    load: Annotated[
        str | None, Setting("Models that explicit loads at the start, separated by ','; * is all.", (), "none")
    ] = None
    poll_s: Annotated[float | None, Setting("How often poll looks, seconds.", (), "15", minimum=0.1)] = None
    config_name: Annotated[
        str | None, Setting("Name of a custom configuration in the models' configs folders.", (), "none")
    ] = None
    auto_complete: Annotated[
        bool | None, Setting("Whether a model without a configuration gets one from its files.", (), "on")
    ] = None
    exit_on_error: Annotated[
        bool | None, Setting("Whether a model that cannot be loaded at the start ends the server.", (), "off")
    ] = None
    cache_bytes: Annotated[int | None, Setting("Size of the response cache.", (), "no cache", minimum=0)] = None
    rate_limit: Annotated[bool | None, Setting("Whether the resources of instance groups count.", (), "off")] = None
    load_timeout_s: Annotated[
        float | None, Setting("How long a model may take to load, seconds.", (), "600", minimum=0.1)
    ] = None
    silence_timeout_s: Annotated[
        float | None,
        Setting("Seconds without a sign after which a model's process is stopped; 0 is never.", (), "300", minimum=0),
    ] = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything a user may ask for. All optional; an unknown key is an error with a suggestion (load.py)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    tgi: TgiConfig = field(default_factory=TgiConfig)
    mindspore: MindsporeConfig = field(default_factory=MindsporeConfig)
    triton: TritonConfig = field(default_factory=TritonConfig)
    repository: RepositoryConfig = field(default_factory=RepositoryConfig)
