"""`kshot run --profile`: a trace with kshot's ranges, and shares that add up."""

import gzip
import json
import re
import time

import pytest
from rich.console import Console
from run_files import SHORT

from kshot.app.profile import PREFIX, RECORDED, profiled
from kshot.training.timing import NAMES, named


def test_a_run_is_profiled_for_a_round(kshot, tmp_path):
    (tmp_path / "run.yaml").write_text(SHORT.replace("steps_per_round: 4", "steps_per_round: 14"))
    result = kshot("run", "run.yaml", "--out", "out", "--profile", "--set", "train.mode=loop")
    assert result.code == 0, result.err
    with gzip.open(tmp_path / "out" / "profile" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    ranges = [event["name"].removeprefix(PREFIX) for event in events if event.get("name", "").startswith(PREFIX)]
    counts = {name: ranges.count(name) for name in set(ranges)}
    assert counts["outer step"] == counts["tasks"] == counts["optimizer"] == RECORDED
    assert counts["inner loop"] == counts["backward"] == 2 * RECORDED  # of two tasks
    assert counts["validation task"] == counts["adapt"] == counts["predict"] == 1
    assert {"aten::addmm", "aten::mm"} & {event.get("name") for event in events}
    table = (tmp_path / "out" / "profile" / "table.txt").read_text()
    shares, operators = table.split("most expensive operators")
    rows = {row[0].strip(): row for row in re.findall(r"│ (.*?) │ +([\d.]+)% │ +([\d.]+) │ +(\d+) │", shares)}
    assert sum(float(row[1]) for row in rows.values()) == pytest.approx(100, abs=0.05 * len(rows))
    assert int(rows["making tasks"][3]) == 9  # steps 6 to 14
    assert int(rows["validation: adapting"][3]) == 4
    assert int(rows["writing checkpoints"][3]) == 1
    assert sum(line.startswith("│ ") and "::" in line for line in operators.splitlines()) == 10
    assert "Where the time goes" in result.out


def test_the_time_of_a_range_is_that_outside_the_ranges_within_it(tmp_path):
    with profiled(tmp_path, Console(quiet=True)) as profile:
        for _ in range(7):
            with named("outer step"):
                with named("tasks"):
                    time.sleep(0.02)
                time.sleep(0.01)
        with named("validation"), named("validation task"):
            time.sleep(0.03)
        with named("checkpoint"):
            pass
        with named("outer step"):
            time.sleep(0.1)  # after the end of the round
    assert profile.calls == {"outer step": 2, "tasks": 2, "validation": 1, "validation task": 1, "checkpoint": 1}
    assert 0.04 <= profile.seconds["tasks"] < 0.1
    assert 0.02 <= profile.seconds["outer step"] < 0.1
    assert profile.total == pytest.approx(sum(seconds for _, seconds, _ in profile.rows()))


def test_a_training_without_enough_steps_says_so(tmp_path, capsys):
    with profiled(tmp_path, Console()):
        for _ in range(5):
            with named("outer step"):
                pass
    assert "Nothing was profiled" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


def test_ranges_cost_nothing_without_a_profile():
    assert {named(name) for name in NAMES} == {named("tasks")}  # nothing is made
    started = time.perf_counter()
    for _ in range(10_000):
        with named("tasks"):
            pass
    assert (time.perf_counter() - started) / 10_000 < 2e-5
