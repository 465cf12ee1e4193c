"""`ModelRepository`: which models of some folders are loaded, and the requests that change it.

Loads everything at the start, follows changes of the folders, or does what it is asked, as its mode says. Owns what is
known of every model (where it is, what it looked like when it was loaded, who asked for it); the servables themselves
are the registry's. Errors have the texts of a Triton server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from millpond.serve.repository import layout
from millpond.serve.repository.configs import ConfigSource, read_config
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import WORDS, ServableError
from millpond.serve.servables.registry import IndexEntry, Servables

RepositoryMode = Literal["none", "poll", "explicit"]

_LOADS_AT_ONCE = 4
_log = logging.getLogger("millpond.serve.repository")


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A model that could not be loaded at the start."""

    name: str
    error: ServableError


@dataclass(frozen=True, slots=True)
class _Found:
    """A model as it is in the folders, or in a request, now."""

    config: ServableConfig
    folder: Path | None
    files: dict[str, bytes]
    looks: dict[int, object]  # by version that is to be served


@dataclass(slots=True)
class _Known:
    """A model that was loaded, or that somebody tried to load."""

    looks: dict[int, object] = field(default_factory=dict)  # what each version looked like when it was loaded
    parts: frozenset[str] = frozenset()  # of an ensemble
    was_asked_for: bool = False  # not only loaded as a part of an ensemble
    lacks_part: bool = False  # an ensemble that was loaded and has lost a part


class ModelRepository:
    """The models of some folders.

    Args:
        paths: The folders.
        servables: Where models are loaded into.
        mode: "none" loads all at the start and nothing later, "poll" follows the folders, "explicit" waits to be asked.
        startup: What "explicit" loads at the start; "*" is everything.
        poll_s: How often "poll" looks.
        config_name: Name of a custom configuration in the models' `configs` folders; "" is none.
        may_guess: Whether models without a configuration get one from their files.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        servables: Servables,
        *,
        mode: RepositoryMode = "none",
        startup: Sequence[str] = (),
        poll_s: float = 15.0,
        config_name: str = "",
        may_guess: bool = True,
    ) -> None:
        self.mode: RepositoryMode = mode
        self._paths = tuple(paths)
        self._servables = servables
        self._startup = tuple(startup)
        self._poll_s = poll_s
        self._config_name = config_name
        self._may_guess = may_guess
        self._known: dict[str, _Known] = {}
        self._failed: dict[str, object] = {}  # what a model looked like when polling could not load it
        self._locks: dict[str, asyncio.Lock] = {}  # by model: a model may load others while it is loaded
        self._poller: asyncio.Task[None] | None = None

    async def start(self) -> list[LoadFailure]:
        """Loads what the mode says and returns what could not be loaded.

        Raises:
            ServableError: A folder cannot be read.
        """
        found = await self._scan()
        names = sorted(found)
        if self.mode == "explicit" and "*" not in self._startup:
            names = list(dict.fromkeys(self._startup))
        side_by_side = asyncio.Semaphore(_LOADS_AT_ONCE)

        async def load(name: str) -> LoadFailure | None:
            async with side_by_side:
                try:
                    await self._load(name, ConfigSource(None))
                    return None
                except ServableError as error:
                    _log.error("model %s was not loaded: %s", name, error.message)
                    self._failed[name] = await asyncio.to_thread(self._outside, found.get(name, []))
                    return LoadFailure(name, error)

        failures = [failure for failure in await asyncio.gather(*map(load, names)) if failure is not None]
        if self.mode == "poll":
            self._poller = asyncio.get_running_loop().create_task(self._poll_for_ever())
        return failures

    async def load(
        self,
        name: str,
        config_override: Mapping[str, object] | str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Loads a model, or loads it again when it has changed; a version that answers does so until then.

        Args:
            name: Its folder's name.
            config_override: Instead of the folder's configuration; a document or its JSON.
            files: Instead of the folder's version folders, by path relative to the model's folder.

        Raises:
            ServableError: It cannot be loaded, or loading is not allowed in this mode.
        """
        self._check_mode()
        files = {layout.check_relative(path): content for path, content in (files or {}).items()}
        if files and config_override is None:
            raise ServableError(
                "invalid_argument", f"failed to load '{name}', files need a configuration in the same request"
            )
        await self._load(name, ConfigSource(None, config_override, files))
        await self._mend(name)

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Unloads a model; what it accepted is finished. A name that is not loaded is no error.

        Args:
            name: Its folder's name.
            dependents: Also unload models that were loaded only as parts of this ensemble.

        Raises:
            ServableError: Unloading is not allowed in this mode.
        """
        self._check_mode()
        await self._unload(name, dependents=dependents)

    async def poll(self) -> None:
        """Looks at the folders once, loads what is new or has changed and unloads what is gone."""
        found = await self._scan()
        for name in sorted(set(self._known) - set(found)):
            await self._unload(name, dependents=False)
        for name in sorted(found):
            look = await asyncio.to_thread(self._outside, found[name])
            if self._failed.get(name) == look:
                continue
            self._failed.pop(name, None)
            try:
                await self._load(name, ConfigSource(None))
                await self._mend(name)
            except ServableError as error:
                _log.error("model %s was not loaded: %s", name, error.message)
                self._failed[name] = look

    async def index(self, ready_only: bool = False) -> list[IndexEntry]:
        """Every version that is or was loaded, and the names in the folders that never were."""
        entries = [entry for entry in self._servables.index() if not ready_only or entry.state == "READY"]
        if ready_only:
            return entries
        known = {entry.name for entry in entries}
        unknown = set(await self._scan()) - known
        return sorted(
            [*entries, *(IndexEntry(name, 0, "") for name in unknown)], key=lambda entry: (entry.name, entry.version)
        )

    async def close(self) -> None:
        """Stops following the folders. The registry is closed by its owner."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
            self._poller = None

    def _check_mode(self) -> None:
        if self.mode != "explicit":
            raise ServableError("unavailable", "explicit model load / unload is not allowed if polling is enabled")

    async def _poll_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.poll()
            except (ServableError, OSError) as error:
                _log.error("the model repository cannot be read: %s", error)

    async def _scan(self) -> dict[str, list[Path]]:
        try:
            return await asyncio.to_thread(layout.find_models, self._paths)
        except OSError as error:
            raise ServableError("internal", f"the model repository cannot be read: {error.strerror}") from error

    def _outside(self, folders: Sequence[Path]) -> object:
        return tuple(layout.fingerprint(folder) for folder in folders if folder.is_dir())

    def _locate(self, name: str) -> Path | None:
        folders = [path / name for path in self._paths if (path / name).is_dir()] if layout.is_name(name) else []
        if len(folders) > 1:
            raise ServableError("internal", "it is in several model repositories")
        return folders[0] if folders else None

    def _look(self, name: str, source: ConfigSource) -> _Found:
        """Reads all that decides whether a model is to be loaded. Runs in a thread."""
        try:
            folder = self._locate(name)
            if (folder is None and source.override is None) or not layout.is_name(name):
                raise ServableError("internal", "")
            config = read_config(
                name, ConfigSource(folder, source.override, source.files, self._config_name, self._may_guess)
            )
            files = dict(source.files)
            versions = layout.versions_of_files(files)
            if not files and folder is not None:
                versions = layout.find_versions(folder)
            if not versions and config.backend == "ensemble":
                versions = [1]
            common = (repr(source.override), layout.fingerprint(folder, skip_versions=True) if folder else ())
            looks: dict[int, object] = {}
            for version in layout.choose_versions(config.version_policy, versions):
                inner = folder / str(version) if folder is not None and not files else None
                looks[version] = (
                    common,
                    layout.of_files(files),
                    layout.fingerprint(inner) if inner is not None and inner.is_dir() else (),
                )
            return _Found(config, folder, files, looks)
        except (ServableError, OSError) as error:
            reason = error.message if isinstance(error, ServableError) else str(error.strerror)
            text = f"failed to load '{name}', failed to poll from model repository"
            text = f"{text}: {reason}" if reason else text
            raise ServableError("internal", text, is_client_fault=True) from error

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _load(self, name: str, source: ConfigSource, *, wholes: tuple[str, ...] = ()) -> None:
        """Loads a model, as a part of these ensembles if there are any."""
        found = await asyncio.to_thread(self._look, name, source)
        try:
            if not found.looks:
                raise ServableError(
                    "invalid_argument",
                    f"at least one version must be available under the version policy of model '{name}'",
                )
            if found.config.ensemble:
                await self._load_parts(name, found.config, wholes)
            async with self._lock(name):
                known = self._known.setdefault(name, _Known())
                known.was_asked_for = known.was_asked_for or not wholes
                known.parts = frozenset(step.model for step in found.config.ensemble)
                await self._load_versions(name, found, known)
                known.lacks_part = False
        except ServableError as error:
            raise ServableError("invalid_argument", f"load failed for model '{name}': {error.message}\n") from error

    async def _load_parts(self, name: str, config: ServableConfig, wholes: tuple[str, ...]) -> None:
        if name in wholes:
            way = " -> ".join([*wholes, name])
            raise ServableError("invalid_argument", f"circular dependency between ensembles: {way}")
        for step in config.ensemble:
            reason = ""
            if not self._servables.versions(step.model):
                try:
                    await self._load(step.model, ConfigSource(None), wholes=(*wholes, name))
                except ServableError as error:
                    reason = f" Model '{step.model}' loading failed with error: {error.message}"
            versions = self._servables.versions(step.model)
            if not versions:
                raise ServableError(
                    "invalid_argument",
                    f"ensemble '{name}' depends on '{step.model}' which has no loaded version.{reason}",
                )
            if step.version is not None and step.version not in versions:
                raise ServableError(
                    "invalid_argument",
                    f"ensemble '{name}' depends on '{step.model}' whose required version {step.version} is not loaded.",
                )

    async def _load_versions(self, name: str, found: _Found, known: _Known) -> None:
        ready = set(self._servables.versions(name))
        failures = []
        for version, look in found.looks.items():
            if version in ready and known.looks.get(version) == look:
                continue
            try:
                await self._servables.add(found.config, ModelFolder(found.folder, version, found.files))
                known.looks[version] = look
            except ServableError as error:
                known.looks.pop(version, None)
                failures.append(f"version {version} is at UNAVAILABLE state: {WORDS[error.code]}: {error.message};")
        if failures:
            raise ServableError("invalid_argument", "".join(failures))
        for version in ready - set(found.looks):
            known.looks.pop(version, None)
            await self._servables.remove(name, version)

    async def _unload(self, name: str, *, dependents: bool) -> None:
        if name not in self._known:
            return
        async with self._lock(name):
            known = self._known.pop(name, None)
            self._failed.pop(name, None)
            await self._servables.remove(name)
        await self._lose(name)
        if known is not None and dependents:
            for part in sorted(known.parts):
                is_needed = any(part in other.parts and not other.lacks_part for other in self._known.values())
                if part in self._known and not self._known[part].was_asked_for and not is_needed:
                    await self._unload(part, dependents=True)

    async def _lose(self, part: str) -> None:
        """Stops the ensembles that need a part which is gone."""
        for whole, known in list(self._known.items()):
            if part in known.parts and self._servables.versions(whole):
                known.lacks_part = True
                known.looks.clear()
                await self._servables.remove(
                    whole, reason=f"ensemble '{whole}' depends on '{part}' which has no loaded version."
                )
                await self._lose(whole)

    async def _mend(self, part: str) -> None:
        """Loads ensembles again that had lost a part which is back now."""
        for whole, known in list(self._known.items()):
            if known.lacks_part and part in known.parts:
                try:
                    asked_for_by = () if known.was_asked_for else (part,)
                    await self._load(whole, ConfigSource(None), wholes=asked_for_by)
                    await self._mend(whole)
                except ServableError as error:
                    _log.error("ensemble %s was not loaded again: %s", whole, error.message)
