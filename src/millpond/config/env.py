"""The environment: the only module that reads it, and the list of every variable there is.

Settings have a variable each (`cache.dtype` is MILLPOND_CACHE_DTYPE); the few that are no settings stand in
`VARIABLES`. An unknown MILLPOND_* name is an error, so that a typo cannot pass for a choice. Called by load.py, by
whoever needs the cache directory, and by the command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from millpond.base.errors import ConfigError
from millpond.base.suggest import did_you_mean
from millpond.config.fields import setting_fields

PREFIX = "MILLPOND_"


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable that is not a setting."""

    name: str
    help: str
    default: str


VARIABLES = (
    Variable(
        "MILLPOND_CACHE",
        "Directory for fetched models and packed weights.",
        "$XDG_CACHE_HOME/millpond, else ~/.cache/millpond",
    ),
    Variable("MILLPOND_CONFIG", "Config file to read when --config is not given.", "none"),
    Variable("MILLPOND_DATA", "Directory for jobs.", "$XDG_DATA_HOME/millpond, else ~/.local/share/millpond"),
    Variable("MILLPOND_DEBUG", "1 shows tracebacks of errors.", "0"),
    Variable("MILLPOND_JOB_ATTEMPT", "Set in a job's processes: how often this replica was started.", "none"),
    Variable("MILLPOND_JOB_DIR", "Set in a job's processes: a directory of its own.", "none"),
    Variable("MILLPOND_JOB_INDEX", "Set in a plain job's processes: which replica this is.", "none"),
    Variable("MILLPOND_JOB_NAME", "Set in a job's processes: the job's name.", "none"),
    Variable("MILLPOND_JOB_NAMESPACE", "Set in a job's processes: the job's namespace.", "none"),
    Variable("MILLPOND_JOB_PEERS", "Set in a plain job's processes: addresses of all replicas by role, JSON.", "none"),
    Variable("MILLPOND_JOB_PORT", "Set in a job's processes: a free port for this replica.", "none"),
    Variable("MILLPOND_JOB_REPLICAS", "Set in a plain job's processes: replicas of this role.", "none"),
    Variable("MILLPOND_JOB_SPOT", "Set in a job's processes: 1 when the replica can be taken away.", "none"),
    Variable("MILLPOND_OFFLINE", "1 never fetches a model: what is not in the cache is an error.", "0"),
)
_JOB_INHERITS = frozenset(
    ("CONDA_PREFIX", "CUDA_HOME", "HF_HOME", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOGNAME",
     "PATH", "PYTHONPATH", "REQUESTS_CA_BUNDLE", "SHELL", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER",
     "VIRTUAL_ENV", "XDG_CACHE_HOME", "XDG_DATA_HOME")
)  # fmt: skip
# Kubernetes puts these into every pod for a service that is called "millpond" or "millpond-something".
_SERVICE_LINK = re.compile(r"MILLPOND_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp)://.*|[0-9.]+|[0-9a-fA-F:]+|")


def cache_dir() -> Path:
    """Where fetched models are kept. Not created here."""
    own = os.environ.get("MILLPOND_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "millpond"


def data_dir() -> Path:
    """Where jobs, their logs and their records are kept. Not created here."""
    own = os.environ.get("MILLPOND_DATA")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "millpond"


def job_environment() -> dict[str, str]:
    """What a job's processes inherit from whoever submits it: how programs and libraries are found, and no secrets."""
    return {name: text for name, text in os.environ.items() if name in _JOB_INHERITS or name.startswith("LC_")}


def own_environment() -> dict[str, str]:
    """All of it, for a process that is a part of this one."""
    return dict(os.environ)


def config_file() -> Path | None:
    """The config file the environment names, if it names one."""
    name = os.environ.get("MILLPOND_CONFIG")
    return Path(name).expanduser() if name else None


def is_debug() -> bool:
    """Whether errors show their traceback."""
    return _is_on("MILLPOND_DEBUG")


def is_offline() -> bool:
    """Whether fetching is forbidden."""
    return _is_on("MILLPOND_OFFLINE")


def setting_values(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the settings the environment holds: path (`cache.dtype`) to the text as it was written.

    Raises:
        ConfigError: A MILLPOND_* variable is not known.
    """
    environment = os.environ if environment is None else environment
    path_of = {field.variable: path for path, field in setting_fields().items()}
    others = {variable.name for variable in VARIABLES}
    values = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(PREFIX) or name in others or _is_service_link(name, text):
            continue
        if name not in path_of:
            near = did_you_mean(name, [*path_of, *others])
            raise ConfigError(f"The environment variable {name} is not known.", fix=near or "Unset it.", param=name)
        values[path_of[name]] = text
    return values


def other_values(names: Iterable[str]) -> dict[str, str]:
    """Returns what the environment says under names that are not Millpond's, for commands that take another's place."""
    return {name: os.environ[name] for name in names if name in os.environ}


def _is_service_link(name: str, text: str) -> bool:
    if name == "MILLPOND_SERVE_PORT":
        return "://" in text
    return bool(_SERVICE_LINK.fullmatch(name)) and bool(_SERVICE_ADDRESS.fullmatch(text))


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").strip().casefold() in {"1", "true", "yes", "on"}
