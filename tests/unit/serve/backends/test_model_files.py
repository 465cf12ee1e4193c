"""Files of load requests: they win over the folder's and cannot leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.serve.backends.model_files import ModelFiles
from millpond.serve.backends.python import may_complete
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.errors import ServableError


def test_a_folder_without_extra_files_is_used_as_it_is(tmp_path: Path) -> None:
    files = ModelFiles(ModelFolder(tmp_path, 1))
    files.close()
    assert files.path == tmp_path.resolve()
    assert tmp_path.exists()


def test_extra_files_win_and_go_away_again(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.txt").write_text("folder")
    (tmp_path / "1" / "b.txt").write_text("folder")
    files = ModelFiles(ModelFolder(tmp_path, 1, {"1/b.txt": b"request", "2/c.txt": b"request"}))
    seen = {path.relative_to(files.path).as_posix(): path.read_text() for path in files.path.rglob("*.txt")}
    assert seen == {"1/a.txt": "folder", "1/b.txt": "request", "2/c.txt": "request"}
    files.close()
    assert not files.path.exists()
    assert (tmp_path / "1" / "b.txt").read_text() == "folder"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "1/../../x", "", "."])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServableError, match="leaves the model's folder") as caught:
        ModelFiles(ModelFolder(tmp_path, 1, {name: b""}))
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("class TritonPythonModel:\n    def execute(self, r): ...", False),
        ("class TritonPythonModel(object):\n    def execute(self, r): ...", False),
        ("class TritonPythonModel:\n    def auto_complete_config(c): ...", True),
        ("class TritonPythonModel(Base):\n    def execute(self, r): ...", True),
        ("from elsewhere import TritonPythonModel", True),
    ],
)
def test_a_model_is_asked_unless_its_text_rules_completion_out(tmp_path: Path, source: str, answer: bool) -> None:
    path = tmp_path / "model.py"
    path.write_text(source)
    assert may_complete(path) is answer
