"""`ServableStartConfig`, its checks, and the folders it names.

    <servable_directory>/<servable_name>/servable_config.py
    <servable_directory>/<servable_name>/<version>/<model files>

Several configurations of one servable and version are merged. Raises `RuntimeError` with the original's texts. Used by
`start_servables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from millpond.compat.mindspore_serving.server.checks import check_bytes, check_int, check_ints, check_str

CONFIG_FILE = "servable_config.py"
_MODES = ("AES-GCM", "AES-CBC")
_MAX_PARALLEL_WORKERS = 64


class ServableStartConfig:
    """Which servable to start, and with how many workers.

    Args:
        servable_directory: Holds a folder of the servable's name.
        servable_name: The servable's name.
        device_ids: One worker a device; here devices only count.
        version_number: 0 is the newest.
        device_type: "Ascend", "GPU", "CPU" or None; all run on the CPU here.
        num_parallel_workers: Number of workers when it is more than devices; at most 64.
        dec_key: The key of encrypted model files; not supported here.
        dec_mode: "AES-GCM" or "AES-CBC".

    Raises:
        RuntimeError: An argument is wrong.
    """

    def __init__(
        self,
        servable_directory: str,
        servable_name: str,
        device_ids: int | Sequence[int] | None = None,
        version_number: int = 0,
        device_type: str | None = None,
        *,
        num_parallel_workers: int = 0,
        dec_key: bytes | None = None,
        dec_mode: str = "AES-GCM",
    ) -> None:
        self.servable_directory = str(Path(check_str("servable_directory", servable_directory)).resolve())
        self.servable_name = check_str("servable_name", servable_name)
        self.version_number = check_int("version_number", version_number, 0)
        check_int("num_parallel_workers", num_parallel_workers, 0, _MAX_PARALLEL_WORKERS)
        self.dec_key = _check_key(dec_key)
        self.dec_mode = check_str("dec_mode", dec_mode)
        if dec_mode not in _MODES:
            raise RuntimeError("Parameter 'dec_mode' expected to be 'AES-GCM' or 'AES-CBC'")
        self.device_ids = () if device_ids is None else check_ints("device_ids", device_ids, 0)
        self.device_type = "none" if device_type is None else check_str("device_type", device_type).lower()
        if self.device_type not in ("none", "ascend", "gpu", "cpu"):
            raise RuntimeError(
                f"Unsupported device type '{device_type}', only support 'Ascend', 'GPU', 'CPU' and None, case ignored"
            )
        self.num_parallel_workers = num_parallel_workers if self.device_ids else max(1, num_parallel_workers)

    @property
    def folder(self) -> Path:
        """The servable's folder."""
        return Path(self.servable_directory) / self.servable_name

    @property
    def num_workers(self) -> int:
        """How many worker processes run it."""
        return max(len(self.device_ids), self.num_parallel_workers)


def merge_config(configs: Sequence[ServableStartConfig]) -> list[ServableStartConfig]:
    """Returns one configuration for each servable and version, its version known.

    Raises:
        RuntimeError: Folders are missing, or configurations contradict each other.
    """
    directories: dict[str, str] = {}
    merged: dict[tuple[str, int], ServableStartConfig] = {}
    for config in configs:
        directory = directories.setdefault(config.servable_name, config.servable_directory)
        if directory != config.servable_directory:
            raise RuntimeError(
                f"The servable directory of servable name {config.servable_name} is different in multiple "
                f"configurations, servable directory: {config.servable_directory} and {directory}"
            )
        check_folder(config)
        version = config.version_number or newest_version(config.folder) or 1
        key = config.servable_name, version
        known = merged.get(key)
        merged[key] = _merge(known, config, version)
    _check_devices(list(merged.values()))
    return list(merged.values())


def check_folder(config: ServableStartConfig) -> None:
    """Raises `RuntimeError` unless the servable's folder and file are there."""
    name, directory = config.servable_name, config.servable_directory
    what = f"servable directory '{directory}', servable name '{name}'"
    if not config.folder.resolve().is_relative_to(directory) or config.folder.resolve() == Path(directory):
        raise RuntimeError(f"Check servable config failed, directory '{config.folder}' is not in {what}")
    if not config.folder.is_dir():
        raise RuntimeError(f"Check servable config failed, directory '{config.folder}' not exist, {what}")
    file = config.folder / CONFIG_FILE
    if not file.is_file():
        raise RuntimeError(f"Check servable config failed, file '{file}' not exist,  {what}")
    if config.version_number and has_versions(config.folder):
        folder = config.folder / str(config.version_number)
        if not folder.is_dir():
            raise RuntimeError(
                f"Start servable failed: There is no specified version directory of models, specified version number: "
                f"{config.version_number}, servable directory: '{directory}', servable name: '{name}'"
            )


def newest_version(folder: Path) -> int:
    """Returns the largest version that has a folder; 0 when none has."""
    return max(_versions(folder), default=0)


def has_versions(folder: Path) -> bool:
    """Whether any version has a folder; a servable without models needs none."""
    return bool(_versions(folder))


def _versions(folder: Path) -> list[int]:
    return [
        int(entry.name)
        for entry in folder.iterdir()
        if entry.name.isascii() and entry.name.isdecimal() and entry.name[0] != "0" and entry.is_dir()
    ]


def _check_key(key: object) -> bytes | None:
    if key is None:
        return None
    checked = check_bytes("dec_key", key)
    if len(checked) not in (16, 24, 32):
        raise RuntimeError(f"Parameter 'dec_key' length {len(checked)} expected to be 16, 24 or 32")
    return checked


def _merge(known: ServableStartConfig | None, config: ServableStartConfig, version: int) -> ServableStartConfig:
    if known is None:
        known_devices: tuple[int, ...] = ()
        num_parallel = config.num_parallel_workers
    else:
        if (known.dec_key, known.dec_mode) != (config.dec_key, config.dec_mode):
            raise RuntimeError(
                f"The dec key or dec mode of servable name {config.servable_name} is different in multiple "
                f"configurations."
            )
        known_devices = known.device_ids
        num_parallel = max(known.num_parallel_workers, config.num_parallel_workers)
    return ServableStartConfig(
        config.servable_directory,
        config.servable_name,
        tuple(sorted({*known_devices, *config.device_ids})),
        version,
        None if config.device_type == "none" else config.device_type,
        num_parallel_workers=num_parallel,
        dec_key=config.dec_key,
        dec_mode=config.dec_mode,
    )


def _check_devices(configs: Sequence[ServableStartConfig]) -> None:
    """Ascend devices belong to one servable each; CPU and GPU are shared, as in the original."""
    used: set[int] = set()
    for config in configs:
        if config.device_type != "ascend":
            continue
        for device in config.device_ids:
            if device in used:
                raise RuntimeError(
                    f"Ascend 910 device id {device} is used repeatedly in servable {config.servable_name}"
                )
            used.add(device)
