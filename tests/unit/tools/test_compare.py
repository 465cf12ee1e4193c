"""The contract between `bench.engine.compare` and the commands it runs, and the report it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench.engine.cases import Case, Peer, PeerError, read_lines, run_command
from bench.engine.compare import collect, plan_round
from bench.report import bar_chart, markdown_table, paired_ratio

ONE, MANY = Case("decode", 128, 64, 1), Case("16 streams", 128, 128, 16)


def test_a_template_is_filled_word_by_word() -> None:
    peer = Peer.parse("other=run {model} --case {case} -n {prompt}x{output}x{streams}")
    command = peer.command([MANY], {"model": "a model; rm"})
    assert command == ["run", "a model; rm", "--case", "16 streams", "-n", "128x128x16"]


def test_one_start_can_answer_all_cases() -> None:
    peer = Peer.parse("slow=run {cases}")
    assert peer.command([ONE, MANY], {}) == ["run", "decode:128:64:1,16 streams:128:128:16"]
    plan = plan_round([Peer("ours", "a {case}"), peer], [ONE, MANY], 0)
    assert [(side.name, len(cases)) for side, cases in plan] == [("ours", 1), ("ours", 1), ("slow", 2)]


def test_sides_take_turns_in_going_first() -> None:
    peers = [Peer("a", "x"), Peer("b", "y")]
    assert [[side.name for side, _ in plan_round(peers, [ONE], index)] for index in (0, 1)] == [["a", "b"], ["b", "a"]]


@pytest.mark.parametrize("text", ["", "=run", "name=", "no command"])
def test_a_peer_without_name_or_command_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=COMMAND"):
        Peer.parse(text)


def test_only_lines_of_the_contract_count() -> None:
    text = 'loading\n{"tokens_per_second": 4}\n{broken\n{"other": 1}\n{"case": "decode", "tokens_per_second": 6}\n'
    assert read_lines(text, [ONE]) == {"decode": [4.0, 6.0]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nothing", "no line"),
        ('{"error": "out of memory"}', "out of memory"),
        ('{"case": "prefill", "tokens_per_second": 1}', "not asked for"),
    ],
)
def test_a_peer_that_breaks_the_contract_says_why(text: str, reason: str) -> None:
    with pytest.raises(PeerError, match=reason):
        read_lines(text, [ONE])


def test_a_command_that_fails_hangs_or_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"exited with 3: broken"):
        run_command([sys.executable, "-c", "import sys; sys.stderr.write('broken'); sys.exit(3)"], 60)
    with pytest.raises(PeerError, match="no end after"):
        run_command([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)
    with pytest.raises(PeerError, match="cannot be started"):
        run_command([str(tmp_path / "none")], 1)


def test_ratios_pair_the_rounds() -> None:
    # The machine was twice as fast in the second round: pairs still say 2.
    assert paired_ratio([2.0, 4.0], [1.0, 2.0]) == 2.0
    assert paired_ratio([2.0], []) is None


def test_a_side_that_failed_a_case_is_a_dash() -> None:
    rows = [
        {"side": "ours", "tokens_per_second": {"decode": 10.0}},
        {"side": "other", "tokens_per_second": {"decode": 4.0}},
        {"side": "third", "error": "no"},
    ]
    table = markdown_table(collect(rows, [ONE]), ["ours", "other", "third"], "tokens/s")
    assert table.splitlines()[2] == "| decode | 10.0 | 4.00 | - | 2.50x | - |"


def test_the_chart_is_well_formed_and_draws_every_value() -> None:
    chart = bar_chart("a < b", {"decode": {"ours": 10.0, "other": 5.0}}, ["ours", "other"])
    boxes = [node for node in ElementTree.fromstring(chart).iter() if node.tag.endswith("rect")]
    lengths = [float(box.attrib["width"]) for box in boxes[-2:]]
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=1e-3)
