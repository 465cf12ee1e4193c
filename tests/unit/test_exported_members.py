"""The package's public names: all there, none by accident, and none of them costs anything before it is used."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import millpond

PUBLIC = {
    "LLM",
    "AsyncEngine",
    "CompletionOutput",
    "EngineConfig",
    "GrammarSpec",
    "Logprob",
    "MillpondError",
    "OutputEvent",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "__version__",
}


def test_the_public_names_are_these() -> None:
    assert set(millpond.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_a_public_name_is_an_object_of_that_name(name: str) -> None:
    assert getattr(millpond, name).__name__ == name


def test_the_version_is_the_installed_one() -> None:
    assert millpond.__version__ == importlib.metadata.version("millpond")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchThing"):
        millpond.NoSuchThing  # noqa: B018


@pytest.mark.parametrize("module", ["millpond", "millpond.inference.engine.client"])
def test_importing_does_not_import_torch(module: str) -> None:
    program = f"import sys; sys.path[:] = {sys.path!r}; import {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_the_package_imports_none_of_its_rooms() -> None:
    rooms = "[name for name in sys.modules if 'millpond.' in name]"
    program = f"import sys; sys.path[:] = {sys.path!r}; import millpond; print({rooms})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
