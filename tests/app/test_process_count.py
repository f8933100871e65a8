"""`kshot run --processes auto`: which number is taken, and that a resumed run keeps it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_files import SHORT

from kshot.app import process_count
from kshot.app.process_count import count_of, fastest_count
from kshot.app.processes import EVENT
from kshot.app.spec import load_spec
from kshot.deciding.decisions import EventLog


@pytest.fixture
def run_file(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SHORT)
    return tmp_path / "tiny.yaml"


def fastest(run_file, *overrides, resume=False):
    said = []
    spec = load_spec(str(run_file), overrides)
    folder = run_file.parent / "run"
    found = fastest_count(spec, str(run_file), overrides, folder, resume=resume, say=said.append)
    return found, said


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("12", 12), ("auto", None)])
def test_the_number_of_processes_is_a_number_or_auto(text, count):
    assert count_of(text) == count


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_other_numbers_of_processes_are_refused(text):
    with pytest.raises(ValueError, match="--processes must be 1 or more, or auto"):
        count_of(text)


@pytest.mark.parametrize(
    ("alone", "together", "count"),
    [(0.4, 0.3, 4), (0.3, 0.4, 1), (None, 0.3, 1), (0.3, None, 1)],
    ids=["processes are faster", "threads are faster", "one fails", "all fail"],
)
def test_the_faster_way_is_taken(run_file, monkeypatch, alone, together, count):
    asked = []

    def measure(processes, *words):
        asked.append((processes, words))
        return {1: alone, 4: together}[processes]

    monkeypatch.setattr(process_count, "_cores", lambda: 8)
    monkeypatch.setattr(process_count, "_seconds_per_step", measure)
    found, said = fastest(run_file, "train.tasks_per_step=4")
    assert found == count
    words = (str(run_file), ("train.tasks_per_step=4",))
    assert asked == [(1, words), (4, words)]
    measured = f"an outer step takes {alone} s by one process, and {together} s by 4 processes of one thread"
    assert said == ([measured] if alone and together else [])


def test_one_core_or_one_task_a_step_is_not_measured(run_file, monkeypatch):
    monkeypatch.setattr(process_count, "_seconds_per_step", None)
    monkeypatch.setattr(process_count, "_cores", lambda: 8)
    assert fastest(run_file, "train.tasks_per_step=1") == (1, [])
    monkeypatch.setattr(process_count, "_cores", lambda: 1)
    assert fastest(run_file, "train.tasks_per_step=4") == (1, [])


def test_a_process_of_torchrun_starts_no_others(run_file, monkeypatch):
    monkeypatch.setattr(process_count, "_seconds_per_step", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert fastest(run_file, "train.tasks_per_step=4") == (1, [])


@pytest.mark.parametrize(("counts", "expected"), [([], 1), ([4], 4), ([4, 2], 2)])
def test_a_resumed_run_has_as_many_processes_as_before(run_file, counts, expected):
    (run_file.parent / "run").mkdir()
    log = EventLog(run_file.parent / "run" / "events.jsonl")
    log.record("train", step=1, loss=0.5)
    for count in counts:
        log.record(EVENT, count=count)
    assert fastest(run_file, resume=True) == (expected, [])


def test_a_program_takes_steps_and_says_how_long_one_takes(run_file, monkeypatch):
    monkeypatch.setattr(process_count, "SECONDS", 0.1)
    process_count.main(run_file.parent / "seconds", str(run_file), ["train.tasks_per_step=2"])
    assert 0 < float((run_file.parent / "seconds").read_text()) < 60


def test_a_program_that_fails_says_nothing(tmp_path):
    assert process_count._seconds_per_step(1, str(tmp_path / "none.yaml"), ()) is None


@pytest.mark.slow
def test_the_command_measures_and_runs(run_file):
    words = ["run", str(run_file), "--out", str(run_file.parent / "run"), "--processes", "auto"]
    words += ["--set=train.tasks_per_step=4", "--set=train.mode=loop"]
    done = subprocess.run([sys.executable, "-m", "kshot.app", *words], check=False, capture_output=True, text=True)
    assert "an outer step takes" in done.stdout
    assert Path(run_file.parent / "run" / "report.json").exists(), done.stderr
