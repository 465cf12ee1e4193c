"""tools/environment.sh with every program it calls replaced: what it says, and when it refuses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "environment.sh"
SYSTEM = ("bash", "env", "awk", "sleep", "mkdir", "cp", "cat", "dirname", "kill")
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
*version_info*) exit ${OLD_PYTHON:-0} ;;
*ensurepip*) exit ${NO_VENV:-0} ;;
--version) echo "Python 3.11.9" ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip --version") exit 0 ;;
"-m pip install "*) echo "pip $*" >> "$LOG"; exit ${PIP_FAILS:-0} ;;
*"import torch"*) exit 1 ;;
esac
"""


class Sandbox:
    """A directory with nothing on the PATH but what the script needs."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        for name in SYSTEM:
            found = shutil.which(name)
            if found is not None:
                (self.bin / name).symlink_to(found)
        self.add("python3.11", FAKE_PYTHON)
        self.add("g++", "#!/usr/bin/env bash\n")
        self.add_disk(gib=50)

    def add(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)  # it may be a link to the system's own
        path.write_text(text)
        path.chmod(0o755)

    def add_disk(self, gib: float) -> None:
        self.add("df", f'#!/usr/bin/env bash\necho head\necho "/dev/x 1 1 {int(gib * (1 << 20))} 1% /"\n')

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"PATH": str(self.bin), "LOG": str(self.root / "log"), **environment}
        command = [shutil.which("bash") or "bash", str(SCRIPT), *arguments]
        return subprocess.run(command, cwd=self.root, env=variables, capture_output=True, text=True, check=False)

    @property
    def pip_calls(self) -> str:
        log = self.root / "log"
        return log.read_text() if log.exists() else ""


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_it_makes_the_environment_and_says_so(sandbox: Sandbox) -> None:
    done = sandbox.run("serve")
    assert done.returncode == 0, done.stderr
    assert "Making .venv with Python 3.11.9" in done.stdout
    assert "this downloads about" in done.stdout
    assert sandbox.pip_calls.endswith("--editable .[serve]\n")


def test_the_test_tools_come_with_dev(sandbox: Sandbox) -> None:
    sandbox.run("dev")
    assert sandbox.pip_calls.endswith("--editable .[serve,dev]\n")


def test_an_environment_that_is_there_is_kept(sandbox: Sandbox) -> None:
    sandbox.run("serve")
    assert "Making" not in sandbox.run("serve").stdout


def test_old_pythons_are_passed_over_and_named_in_a_sentence(sandbox: Sandbox) -> None:
    done = sandbox.run("serve", OLD_PYTHON="1")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no Python of version 3.11 or later was found.")
    assert len(done.stderr.splitlines()) == 1


def test_the_python_that_was_named_is_taken(sandbox: Sandbox) -> None:
    sandbox.add("python3.13", "#!/usr/bin/env bash\nexit 1\n")
    sandbox.add("mine", FAKE_PYTHON.replace("3.11.9", "3.14.1"))
    assert "with Python 3.14.1" in sandbox.run("serve", PYTHON="mine").stdout


def test_a_python_without_venv_is_a_sentence(sandbox: Sandbox) -> None:
    done = sandbox.run("serve", NO_VENV="1")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: python3.11 has no venv module. Install it (Debian: apt-get install python3-venv).\n",
    )


def test_no_compiler_is_a_warning_only(sandbox: Sandbox) -> None:
    (sandbox.bin / "g++").unlink()
    done = sandbox.run("serve")
    assert done.returncode == 0
    assert "Warning: no C++ compiler was found" in done.stderr


def test_a_full_disk_is_a_sentence(sandbox: Sandbox) -> None:
    sandbox.add_disk(gib=1)
    done = sandbox.run("serve")
    assert (done.returncode, sandbox.pip_calls) == (1, "")
    assert "Error: only 1024 MiB of disk are free" in done.stderr


def test_little_memory_is_a_sentence(sandbox: Sandbox) -> None:
    sandbox.add("awk", "#!/usr/bin/env bash\necho 1000000\n")
    done = sandbox.run("serve")
    assert done.returncode == 1
    assert "Error: only 976 MiB of memory are free" in done.stderr


def test_a_failing_pip_ends_with_a_sentence(sandbox: Sandbox) -> None:
    done = sandbox.run("serve", PIP_FAILS="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: pip could not install the libraries.")


def test_another_name_is_refused(sandbox: Sandbox) -> None:
    assert "Error: there is no environment called 'prod'" in sandbox.run("prod").stderr
