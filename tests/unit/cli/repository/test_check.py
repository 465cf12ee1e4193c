"""What `millpond repository check` finds in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from millpond.cli.main import main


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


ENSEMBLE = """platform: "ensemble" max_batch_size: 0
input { name: "A" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "B" data_type: TYPE_FP32 dims: [ 1 ] }
ensemble_scheduling { step { model_name: "%s" model_version: -1 input_map { key: "X" value: "A" }
output_map { key: "Y" value: "B" } } }"""

FT = """backend: "fastertransformer"
parameters { key: "model_type" value { string_value: "T5" } }"""


def check(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[str]]]:
    """The exit code, and every model's faults."""
    code = main(["repository", "check", str(root), "--json"])
    return code, {report["name"]: report["faults"] for report in json.loads(capsys.readouterr().out)}


def test_a_repository_without_faults_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path,
        {
            "add/config.pbtxt": 'backend: "python" max_batch_size: 8',
            "add/1/model.py": "",
            "add/3/model.py": "",
            "sum/config.pbtxt": ENSEMBLE % "add",
            "sum/1/.keep": "",
            "llm/1/model.json": '{"model": "smollm2-135m", "max_model_len": 512}',
        },
    )

    code = main(["repository", "check", str(tmp_path)])

    assert code == 0
    assert capsys.readouterr().out.splitlines() == [
        "add: python, versions 3",
        "llm: vllm, versions 1",
        "sum: ensemble, versions 1",
    ]


def test_every_kind_of_fault_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path,
        {
            "broken/config.pbtxt": "backend: [",
            "no_version/config.pbtxt": 'backend: "python"',
            "no_file/config.pbtxt": 'backend: "python"',
            "no_file/1/other.py": "",
            "no_config/1/weights.bin": "",
            "unknown/config.pbtxt": 'backend: "dali"',
            "unknown/1/x": "",
            "policy/config.pbtxt": 'backend: "python" version_policy { specific { versions: [ 7 ] } }',
            "policy/1/model.py": "",
            "parts/config.pbtxt": ENSEMBLE % "absent",
            "parts/1/.keep": "",
            "arguments/1/model.json": '{"model": "m", "max_modellen": 5}',
            "ft/config.pbtxt": FT,
            "ft/1/config.ini": "",
        },
    )

    code, faults = check(tmp_path, capsys)

    assert code == 1
    words = {
        "broken": "failed to read text proto",
        "no_version": "No version would be served. Make a folder named 1",
        "no_file": "1/model.py is missing.",
        "no_config": "configuration is not provided",
        "unknown": "There is no back end 'dali'",
        "policy": "No version would be served. It has 1.",
        "parts": "asks absent, which is not in this repository",
        "arguments": "unknown argument 'max_modellen'",
        "ft": "model_type T5 is not served",
    }
    assert set(faults) == set(words)
    for name, expected in words.items():
        assert expected in faults[name][0]


def test_an_empty_folder_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repository", "check", str(tmp_path)]) == 1
    assert "There is no model in it." in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repository", "check", str(tmp_path / "absent")]) == 1
    assert "absent cannot be read" in capsys.readouterr().err
