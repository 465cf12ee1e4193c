"""The commands that run a model, on a tiny one, against transformers and by what a shell sees."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from millpond.cli.main import main
from tests.support.tiny_checkpoints import CHAT_TEMPLATE, make_raw_tokenizer

PROMPT = "The mill by the pond"
EXACT = ["--dtype", "float32", "--temperature", "0", "--max-tokens", "12"]


def transformers_text(model_dir: Path, prompt: str, num_tokens: int) -> str:
    import torch

    raw = make_raw_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    ids = torch.tensor([raw.encode(prompt).ids])
    out = model.generate(ids, max_new_tokens=num_tokens, do_sample=False)[0, ids.shape[1] :].tolist()
    return str(raw.decode(out))


def test_generate_prints_prompt_and_completion(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_model), "-p", PROMPT, *EXACT]) == 0
    assert capsys.readouterr().out == f"{PROMPT}{transformers_text(tiny_model, PROMPT, 12)}\n"


def test_generate_reads_standard_input(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert main(["generate", str(tiny_model), "--json", *EXACT]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompt"] == PROMPT
    assert document["outputs"][0]["text"] == transformers_text(tiny_model, PROMPT, 12)
    assert len(document["outputs"][0]["token_ids"]) == 12


def test_generate_takes_several_prompts_and_choices(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_model), "-p", "A", "-p", "B", "-n", "2", "--max-tokens", "3", "--json"]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(document["prompt"], len(document["outputs"])) for document in documents] == [("A", 2), ("B", 2)]


def test_generate_chat_puts_the_prompt_into_the_template(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "<|im_start|>" in CHAT_TEMPLATE
    assert main(["generate", str(tiny_model), "--chat", "-p", "Hi", *EXACT]) == 0
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert capsys.readouterr().out == f"{transformers_text(tiny_model, prompt, 12)}\n"


def test_generate_without_any_prompt_is_wrong_usage(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["generate", str(tiny_model)]) == 2
    assert "Standard input is empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["generate", "-p", "x"], ["models", "inspect"]])
def test_a_model_that_is_not_there_is_one_sentence(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "no/such/model"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Error: ")
    assert "no/such/model" in shown
    assert len(shown.splitlines()) == 1


def test_inspect_says_what_the_checkpoint_holds(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "inspect", str(tiny_model), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert document["num_parameters"] == sum(parameter.numel() for parameter in theirs.parameters())
    assert document["spec"]["num_layers"] == theirs.config.num_hidden_layers
    assert document["bytes_by_dtype"] == {"F32": 4 * document["num_parameters"]}


def test_inspect_for_people_is_short(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "inspect", str(tiny_model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "family" in "\n".join(lines)
    assert len(lines) < 40


def test_list_names_the_default_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    assert "smollm2-135m" in {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_pull_of_an_unknown_name_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", "smollm2-135"]) == 1
    assert "Did you mean 'smollm2-135m'?" in capsys.readouterr().err


def test_bench_measures_a_model(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--requests", "6", "--concurrency", "3", "--prompt-tokens", "20", "--output-tokens", "5"]
    assert main(["bench", str(tiny_model), *sizes, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["requests"], report["failed"]) == (6, 0)
    assert (report["prompt_tokens"], report["output_tokens"]) == (120, 30)
    assert 0 < report["ttft_s"]["p50"] <= report["ttft_s"]["p99"] <= report["request_s"]["p99"]


def test_chat_answers_what_is_piped_in(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "millpond", "chat", str(tiny_model), "--max-tokens", "4"]
    done = subprocess.run(command, input="Hi\n/reset\nBye\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "forgotten" in done.stderr
    assert "Error" not in done.stderr
    assert done.stdout.count("\n") >= 2


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, command: list[str]) -> None:
        self.ours, theirs = pty.openpty()
        command = ["env", "--default-signal=INT", *command]  # what a shell starts in the background ignores Ctrl-C
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        self.seen = ""
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, text: str) -> None:
        """Reads until `text` shows after what was waited for before; a minute is more than any of it takes."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            readable, _, _ = select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"{text!r} did not come in time; the rest was {self.seen!r}"
            try:
                piece = os.read(self.ours, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                piece = ""
            assert piece, f"{text!r} did not come; the rest was {self.seen!r}"
            self.seen += piece
        self.seen = self.seen.partition(text)[2]

    def close(self) -> int:
        code = self.process.wait()
        os.close(self.ours)
        return code


def test_ctrl_c_stops_the_answer_and_not_the_chat(tiny_model: Path, tmp_path: Path) -> None:
    # The endless answer is stopped by the key, so the engine must not see the key: it shares the terminal.
    patient = tmp_path / "patient"  # with room for an answer that is still running when the key comes
    shutil.copytree(tiny_model, patient)
    config = json.loads((patient / "config.json").read_text())
    (patient / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    flags = ["--max-tokens", "6000", "--ignore-eos", "on"]
    script = (
        "import os, fcntl, termios, sys; from millpond.cli.main import main; "
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.exit(main(sys.argv[1:]))"
    )
    terminal = Terminal([sys.executable, "-c", script, "chat", str(patient), *flags])
    try:
        terminal.wait_for("> ")
        terminal.type("Hi\n")
        terminal.wait_for("Hi\r\n")
        time.sleep(0.05)
        terminal.type("\x03")
        terminal.wait_for("[stopped]")
        terminal.wait_for("> ")
        terminal.type("Again\n")
        terminal.wait_for("Again\r\n")
        time.sleep(0.05)
        terminal.type("\x03")
        terminal.wait_for("[stopped]")
        terminal.wait_for("> ")
        terminal.type("/quit\n")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
