"""`LLM`: offline batches in this process, with the results vLLM's users know.

Owns an `EngineCore` and the loop around it; everything the engine process does, without the process. Called by users
and by `millpond generate`. One thread at a time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, cast

import msgspec

from millpond.api.request import EngineStats, OutputEvent, Request, SamplingParams
from millpond.base.errors import ConfigError, RequestError
from millpond.base.progress import Progress, StageProgress
from millpond.base.suggest import did_you_mean
from millpond.config.fields import setting_fields
from millpond.config.load import make_config, replace_settings
from millpond.config.schema import EngineConfig
from millpond.inference.engine.admission import check_request
from millpond.inference.engine.batch import OfflineBatch
from millpond.inference.engine.loading import load_engine
from millpond.inference.engine.locating import locate_model
from millpond.inference.engine.results import RequestOutput, make_completion, make_prompt_logprobs
from millpond.inference.engine.stages import StageClock

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Message = Mapping[str, Any]
_LARGEST_QUEUE = 1_000_000
_SECTIONS = ("model", "cache", "scheduler", "speculation", "runtime")


class LLM:
    """A model, ready to complete prompts.

    Args:
        model: A directory, a .gguf file or a name from `millpond models list`.
        dtype: "auto", "float32", "bfloat16", "int8", "w8a8" or "int4".
        **settings: Any setting of the config file by its name, with its section in front where other sections have that
            name too: `max_len=4096`, `threads=2`, `cache_dtype="bfloat16"`, `cache_bytes="2GiB"`.

    Raises:
        ConfigError: A setting is not known or cannot be met.
        CheckpointError: The model's files are missing or broken.
        MemoryError: It does not fit.
    """

    def __init__(self, model: str, *, dtype: str = "auto", **settings: object) -> None:
        self._open(make_config({"model.path": model, "model.dtype": dtype, **_by_path(settings)}), None)

    @classmethod
    def from_config(cls, config: EngineConfig, progress: Progress | None = None) -> LLM:
        """Makes one from a config, e.g. one read from a file.

        Args:
            config: What is asked for.
            progress: Told how far loading is; None shows it on standard error.
        """
        llm = cls.__new__(cls)
        llm._open(config, progress)
        return llm

    def _open(self, config: EngineConfig, progress: Progress | None) -> None:
        # Every prompt of a batch may wait: there is no one else to turn away.
        config = replace_settings(config, {"scheduler.max_queue": _LARGEST_QUEUE})
        with StageProgress(quiet=progress is not None) as shown:
            report = progress or shown
            config, path = locate_model(config, report)
            engine = load_engine(config, path, StageClock(report, "import"))
        self.info = engine.info
        self.text = engine.text
        self._core = engine.core
        self._request_ids = itertools.count()
        self._is_open = True

    @property
    def stats(self) -> EngineStats:
        """Counters since the engine was loaded."""
        return self._core.stats()

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Completes prompts, all in one batch.

        Args:
            prompts: A text, texts, or prompts as token ids.
            sampling_params: One for all, or one for each prompt; None: the defaults.
            use_tqdm: Show progress on standard error.

        Returns:
            One result a prompt, in the order of the prompts.

        Raises:
            RequestError: A prompt or parameter cannot be used; nothing was run.
        """
        asked = _as_list(prompts)
        encode = self.text.tokenizer.encode
        token_ids = [encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in asked]
        return self._complete([p if isinstance(p, str) else None for p in asked], token_ids, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers conversations: one, or a list of them. Each is a list of {"role", "content"}.

        Raises:
            RequestError: The model has no chat template, or it refuses the messages.
        """
        template = self.text.chat_template
        if template is None:
            raise RequestError("The model has no chat template.", fix="Give one with model_chat_template=FILE.")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        rendered = [
            template.render(
                [dict(message) for message in conversation],  # type: ignore[arg-type]
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                extra=chat_template_kwargs or {},
            )
            for conversation in conversations
        ]
        token_ids = [self.text.tokenizer.encode(text, add_special_tokens=False) for text in rendered]
        return self._complete(rendered, token_ids, sampling_params, use_tqdm)

    def beam_search(
        self, prompts: Prompts, sampling_params: SamplingParams, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Searches with `sampling_params.beam_width` beams and returns all of them, best first.

        `beam_width`, `max_tokens`, `length_penalty`, `early_stopping` and `ignore_eos` count; the result is that of
        transformers' `generate(num_beams=...)`. `generate` does the same and returns the `n` best.
        """
        params = msgspec.structs.replace(sampling_params, n=max(1, sampling_params.beam_width), temperature=0.0)
        return self.generate(prompts, params, use_tqdm)

    def close(self) -> None:
        """Gives memory and threads back. The object cannot be used after."""
        if self._is_open:
            self._is_open = False
            self._core.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _complete(
        self,
        prompts: Sequence[str | None],
        token_ids: Sequence[list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        params = _params_for(len(prompts), self.text.sampling if sampling_params is None else sampling_params)
        requests = [
            check_request(Request(str(next(self._request_ids)), ids, param), self.info)
            for ids, param in zip(token_ids, params, strict=True)
        ]
        batch = OfflineBatch(self._core, self.text.tokenizer, self.info.eos_token_ids)
        with StageProgress(quiet=not use_tqdm or not requests) as progress:
            results = batch.run(requests, lambda done: progress("completing prompts", done / len(requests)))
        return [
            self._result(request, prompt, events)
            for request, prompt, events in zip(requests, prompts, results, strict=True)
        ]

    def _result(self, request: Request, prompt: str | None, events: list[OutputEvent]) -> RequestOutput:
        return RequestOutput(
            request_id=request.request_id,
            prompt=prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[make_completion(event, self._decode) for event in events],
            prompt_logprobs=make_prompt_logprobs(events[0].prompt_logprobs, self._decode) if events else None,
            num_cached_tokens=max((event.num_cached_tokens for event in events), default=0),
        )

    def _decode(self, token_id: int) -> str:
        return self.text.tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _as_list(prompts: Prompts) -> list[str | Sequence[int]]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and all(isinstance(token_id, int) for token_id in prompts):
        return [cast("Sequence[int]", prompts)]
    return list(cast("Sequence[str | Sequence[int]]", prompts))


def _params_for(count: int, params: SamplingParams | Sequence[SamplingParams]) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise RequestError(
            f"There are {count} prompts and {len(params)} sampling parameters.",
            fix="Give one for all, or one for each prompt.",
            param="sampling_params",
        )
    return list(params)


def _by_path(settings: Mapping[str, object]) -> dict[str, object]:
    """Turns keyword names into setting paths: `cache_bytes` and, where no other section has it, `bytes`."""
    known: dict[str, str] = {}
    fields = [field for field in setting_fields().values() if field.section in _SECTIONS]
    names = Counter(field.name for field in fields)
    for field in fields:
        known[f"{field.section}_{field.name}"] = field.path
        if names[field.name] == 1:
            known[field.name] = field.path
    for name in settings:
        if name not in known:
            raise ConfigError(f"The setting '{name}' is not known.", fix=did_you_mean(name, known), param=name)
    return {known[name]: value for name, value in settings.items()}
