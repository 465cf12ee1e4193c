"""What is wrong with a model repository, found without loading a model.

Reads every model's configuration as the server does, looks for the versions that would be served and for the files
their back ends need, and for the parts of ensembles. Imports no back end that runs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from millpond.base.errors import ConfigError
from millpond.serve.backends import ft_folder, llm_folder
from millpond.serve.repository.configs import ConfigSource, read_config
from millpond.serve.repository.layout import choose_versions, find_models, find_versions
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError

_Check = Callable[[ServableConfig, ModelFolder], object]


@dataclass(slots=True)
class ModelReport:
    """One model of a repository.

    Attributes:
        backend: What would run it; "" when that cannot be known.
        versions: Those that would be served.
        faults: What is wrong, a sentence each.
    """

    name: str
    backend: str = ""
    versions: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check_repository(path: Path) -> list[ModelReport]:
    """Returns a report on every model, by name.

    Raises:
        ConfigError: The folder cannot be read.
    """
    try:
        found = find_models([path])
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}.", fix="Name the folder above the models."
        ) from None
    configs: dict[str, ServableConfig] = {}
    reports = []
    for name, (folder, *_) in sorted(found.items()):
        report = ModelReport(name)
        reports.append(report)
        try:
            configs[name] = read_config(name, ConfigSource(folder))
        except ServableError as error:
            report.faults.append(_sentence(error.message))
    for report in reports:
        if report.name in configs:
            _check_model(report, configs[report.name], found[report.name][0], configs)
    return reports


def _check_model(
    report: ModelReport, config: ServableConfig, folder: Path, configs: Mapping[str, ServableConfig]
) -> None:
    report.backend = config.backend or "ensemble"
    present = find_versions(folder)
    report.versions = choose_versions(config.version_policy, present)
    if not report.versions:
        has = f"It has {', '.join(map(str, present))}." if present else "Make a folder named 1 in it."
        report.faults.append(f"No version would be served. {has}")
    for step in config.ensemble:
        if step.model not in configs:
            report.faults.append(f"Its step asks {step.model}, which is not in this repository.")
    check = _CHECKS.get(config.backend)
    if check is None:
        if not config.ensemble:
            report.faults.append(f"There is no back end '{config.backend}'; there are {', '.join(_CHECKS)}.")
        return
    for version in report.versions:
        try:
            check(config, ModelFolder(folder, version))
        except ServableError as error:
            report.faults.append(_sentence(error.message))


def _needs_file(*names: str) -> _Check:
    def check(config: ServableConfig, folder: ModelFolder) -> None:
        assert folder.path is not None
        wanted = (config.default_model_filename,) if config.default_model_filename else names
        if not any((folder.path / str(folder.version) / name).exists() for name in wanted):
            raise ServableError("not_found", f"{folder.version}/{' or '.join(wanted)} is missing.")

    return check


def _check_fastertransformer(config: ServableConfig, folder: ModelFolder) -> None:
    ft_folder.read_folder(ft_folder.complete_config(config), folder)


_CHECKS: dict[str, _Check] = {
    "python": _needs_file("model.py"),
    "onnxruntime": _needs_file("model.onnx"),
    "pytorch": _needs_file("model.pt", "model.pt2"),
    "stages": lambda config, folder: None,  # its loader decides what it needs
    "llm": llm_folder.read_arguments,
    "vllm": llm_folder.read_arguments,
    "millpond": llm_folder.read_arguments,
    "fastertransformer": _check_fastertransformer,
}


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
