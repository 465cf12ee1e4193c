"""Where the seconds of a start went."""

from __future__ import annotations

from millpond.inference.engine.stages import StageClock


def test_each_stage_gets_the_time_until_the_next_one() -> None:
    times = iter([10.0, 13.0, 20.0, 20.5])
    told: list[tuple[str, float]] = []
    clock = StageClock(lambda stage, fraction: told.append((stage, fraction)), "start", clock=lambda: next(times))
    clock("weights", 0.0)
    clock("weights", 0.5)
    clock("tokenizer", 0.0)
    assert clock.finish() == {"start": 3.0, "weights": 7.0, "tokenizer": 0.5}
    assert told == [("weights", 0.0), ("weights", 0.5), ("tokenizer", 0.0)]


def test_the_first_stage_may_have_begun_before_the_clock() -> None:
    assert StageClock(None, "start process", started_s=1.0, clock=lambda: 3.5).finish() == {"start process": 2.5}
