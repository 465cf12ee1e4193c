"""Measures llguidance and xgrammar against each other: why docs/design/grammar.md chose as it did.

    python -m bench.engine.grammar_choice [--model NAME_OR_PATH] [--rounds 7] [--json FILE]

Needs the `dev` extra; a library that is not installed is left out (`pip install xgrammar` brings triton, about 1 GB).
For each library: what an installation adds, import and tokenizer time, compile and mask times, which JSON Schema
keywords are enforced, whether random text under a mask validates, and what schema bombs do. Times are processor time
of the process, so that a busy machine disturbs less, and the median of the rounds; the spread is their range.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jsonschema_rs
import numpy as np

from bench.engine.grammar_cases import BOMBS, SPEED, TRICKY, Case
from millpond.base.machine import read_machine
from millpond.inference.text import TextModel, load_text
from millpond.inference.weights.catalog import resolve_model

LIBRARIES = ("llguidance", "xgrammar")
BOMB_SECONDS = 10
WALKS, WALK_TOKENS = 12, 100


class Library(Protocol):
    """One library behind the calls a sampler makes."""

    def compile(self, schema: dict[str, Any]) -> Any:
        """A compiled grammar; raises ValueError when it is refused."""

    def start(self, compiled: Any) -> Any:
        """A matcher at the start."""

    def fill(self, matcher: Any) -> None:
        """Computes the mask of the next token into `bits`."""

    def allowed(self) -> np.ndarray:
        """The tokens of the last mask."""

    def accept(self, matcher: Any, token: int) -> None:
        """Moves on by a token the mask allowed."""


class Llguidance:
    """As `inference.sampling.grammar` uses it, without our limits."""

    def __init__(self, text: TextModel) -> None:
        import llguidance

        self._module = llguidance
        self._tokenizer = llguidance.LLTokenizer(text.tokenizer.raw.to_str(), eos_token=list(text.eos_token_ids))
        self.bits = np.zeros((1, -(-text.tokenizer.vocab_size // 32)), dtype=np.int32)

    def compile(self, schema: dict[str, Any]) -> Any:
        matcher = self._module.LLMatcher(
            self._tokenizer, self._module.LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0
        )
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def start(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def fill(self, matcher: Any) -> None:
        matcher.unsafe_compute_mask_ptr(self.bits.ctypes.data, self.bits.nbytes)

    def allowed(self) -> np.ndarray:
        return np.flatnonzero(np.unpackbits(self.bits.view(np.uint8), bitorder="little"))

    def accept(self, matcher: Any, token: int) -> None:
        matcher.consume_token(token)


class Xgrammar:
    """With JSON Schema's own rules for unlisted properties and items (strict_mode off), as the other does."""

    def __init__(self, text: TextModel) -> None:
        import torch
        import xgrammar

        self._module = xgrammar
        info = xgrammar.TokenizerInfo(
            text.tokenizer.vocabulary_bytes(),
            xgrammar.VocabType.RAW,
            vocab_size=text.tokenizer.vocab_size,
            stop_token_ids=list(text.eos_token_ids),
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._mask = xgrammar.allocate_token_bitmask(1, text.tokenizer.vocab_size)
        self.bits = self._mask.numpy()
        torch.set_num_threads(1)

    def compile(self, schema: dict[str, Any]) -> Any:
        try:
            return self._compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
        except Exception as error:
            raise ValueError(str(error)) from error

    def start(self, compiled: Any) -> Any:
        return self._module.GrammarMatcher(compiled)

    def fill(self, matcher: Any) -> None:
        if matcher.is_terminated():
            self.bits[:] = 0
        elif not matcher.fill_next_token_bitmask(self._mask):
            self.bits[:] = -1  # its way to say that everything is allowed

    def allowed(self) -> np.ndarray:
        return np.flatnonzero(np.unpackbits(self.bits.view(np.uint8), bitorder="little"))

    def accept(self, matcher: Any, token: int) -> None:
        matcher.accept_token(token)


def make_library(name: str, text: TextModel) -> Library:
    """The library called `name`, with its tokenizer built."""
    return Llguidance(text) if name == "llguidance" else Xgrammar(text)


def processor_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """What `work` costs and gives."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def spread(values: list[float], unit: float) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values) / unit, 2),
        "low": round(min(values) / unit, 2),
        "high": round(max(values) / unit, 2),
    }


def measure_install(name: str) -> dict[str, Any]:
    """What installing the library adds to what we need anyway."""
    ours: set[str] = set()
    for base in ("torch", "numpy", "safetensors", "tokenizers", "msgspec", "jinja2", "click", "rich", "starlette"):
        ours |= _closure(base)
    sizes = {}
    for package in sorted(_closure(name) - ours):
        files = importlib.metadata.distribution(package).files or []
        sizes[package] = sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file())
    program = f"import time; t = time.process_time(); import {name}; print(time.process_time() - t)"
    runs = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3)]
    return {
        "version": importlib.metadata.version(name),
        "adds_mb": round(sum(sizes.values()) / 1e6, 1),
        "largest": dict(sorted(((k, round(v / 1e6, 1)) for k, v in sizes.items()), key=lambda item: -item[1])[:4]),
        "import_s": round(min(runs), 3),
    }


def _closure(name: str) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        package = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if package in found:
            continue
        try:
            needs = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(package)
        waiting += [re.split(r"[\s;\[<>=!~(]", need)[0] for need in needs if "extra ==" not in need]
    return found


def measure_speed(library: Library, text: TextModel, case: Case, rounds: int) -> dict[str, Any]:
    """Compile time and the time of each mask on the way through the case's first document."""
    tokens = text.tokenizer.encode(case.good[0], add_special_tokens=False)
    compiles: list[float] = []
    cold: list[float] = []
    means: list[float] = []
    worst: list[float] = []
    for _ in range(rounds):
        seconds, compiled = processor_seconds(lambda: library.compile(case.schema))
        compiles.append(seconds)
        for warm in (False, True):
            matcher = library.start(compiled)
            masks = []
            for token in tokens:
                start = time.perf_counter()  # a mask is too short for the processor clock
                library.fill(matcher)
                masks.append(time.perf_counter() - start)
                assert token in library.allowed(), f"{case.name}: a good document was refused"
                library.accept(matcher, token)
            if warm:
                means.append(statistics.mean(masks))
            else:
                cold.append(statistics.mean(masks))
                worst.append(max(masks))
    return {
        "compile_ms": spread(compiles, 1e-3),
        "mask_us_first_use": spread(cold, 1e-6),
        "mask_us_reused": spread(means, 1e-6),
        "worst_mask_ms": spread(worst, 1e-3),
    }


def takes(library: Library, text: TextModel, compiled: Any, document: str) -> bool:
    """Whether the masks let the document through, and an end after it."""
    matcher = library.start(compiled)
    for token in text.tokenizer.encode(document, add_special_tokens=False):
        library.fill(matcher)
        if token not in library.allowed():
            return False
        library.accept(matcher, token)
    library.fill(matcher)
    return any(token in library.allowed() for token in text.eos_token_ids)


def measure_keyword(library: Library, text: TextModel, case: Case) -> str:
    """enforced, refused (at compile time), ignored (a bad document passes) or too strict (a good one does not)."""
    assert all(
        jsonschema_rs.is_valid(case.schema, json.loads(document), validate_formats=True) for document in case.good
    )
    assert not any(jsonschema_rs.is_valid(case.schema, json.loads(bad), validate_formats=True) for bad in case.bad)
    try:
        compiled = library.compile(case.schema)
        if not all(takes(library, text, compiled, document) for document in case.good):
            return "too strict"
        return "ignored" if any(takes(library, text, compiled, document) for document in case.bad) else "enforced"
    except ValueError:
        return "refused"


def measure_soundness(library: Library, text: TextModel, case: Case) -> dict[str, int]:
    """Random text under the masks: how much of it that came to an end is valid."""
    try:
        compiled = library.compile(case.schema)
    except ValueError:
        return {"ended": 0, "invalid": 0}
    ended = invalid = 0
    pieces = text.tokenizer.vocabulary_bytes()
    is_short = np.array([0 < len(piece) <= 2 for piece in pieces])
    for walk in range(WALKS):
        chance = np.random.default_rng(walk)
        tokens: list[int] = []
        matcher = library.start(compiled)
        for _ in range(WALK_TOKENS):
            library.fill(matcher)
            allowed = library.allowed()
            is_end = np.isin(allowed, text.eos_token_ids)
            going_on = allowed[~is_end]
            if not going_on.size or (is_end.any() and chance.random() < 0.5):
                ended += 1
                invalid += not _is_valid(case.schema, b"".join(pieces[token] for token in tokens))
                break
            short = going_on[is_short[going_on]]  # or strings would never close
            tokens.append(int(chance.choice(short if short.size else going_on)))
            library.accept(matcher, tokens[-1])
    return {"ended": ended, "invalid": invalid}


def _is_valid(schema: dict[str, Any], document: bytes) -> bool:
    try:
        return bool(jsonschema_rs.is_valid(schema, json.loads(document), validate_formats=True))
    except ValueError:
        return False


def run_bomb(name: str, library_name: str, text: TextModel) -> None:
    """Child process: compiles one bomb, takes five masks, prints what it cost."""
    library = make_library(library_name, text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, BOMB_SECONDS)
    start = time.process_time()
    outcome = "compiled"
    try:
        matcher = library.start(library.compile(BOMBS[name]))
        for _ in range(5):
            library.fill(matcher)
            allowed = library.allowed()
            if not len(allowed):
                break
            library.accept(matcher, int(allowed[len(allowed) // 2]))
    except ValueError:
        outcome = "refused"
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"outcome": outcome, "seconds": round(seconds, 3), "memory_mb": memory // 1024}))


def measure_bomb(name: str, library_name: str, model: str) -> dict[str, Any]:
    """Runs a bomb in a process that can be lost."""
    command = [sys.executable, "-m", "bench.engine.grammar_choice", "--model", model, "--bomb", name, library_name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGPROF:
        return {"outcome": f"still compiling after {BOMB_SECONDS} s"}
    if done.returncode:
        return {"outcome": f"killed the process ({done.returncode})"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, text: TextModel, model: str, rounds: int) -> dict[str, Any]:
    """Everything about one library."""
    seconds, library = processor_seconds(lambda: make_library(name, text))
    return {
        "install": measure_install(name),
        "tokenizer_s": round(seconds, 3),
        "speed": {case.name: measure_speed(library, text, case, rounds) for case in SPEED},
        "keywords": {case.name: measure_keyword(library, text, case) for case in TRICKY},
        "random_text": {case.name: measure_soundness(library, text, case) for case in [*SPEED, *TRICKY]},
        "bombs": {bomb: measure_bomb(bomb, name, model) for bomb in BOMBS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer to use")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bomb", nargs=2, metavar=("BOMB", "LIBRARY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = str(resolve_model(args.model))
    text = load_text(path)
    if args.bomb:
        bomb, library = args.bomb
        run_bomb(bomb, library, text)
        return
    machine = read_machine()
    result: dict[str, Any] = {"machine": {"cpu": machine.cpu_model, "cores": machine.usable_cores}}
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed")
            continue
        result[name] = measure(name, text, path, args.rounds)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
