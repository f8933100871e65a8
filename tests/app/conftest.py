"""The command line as tests call it."""

import sys

import pytest

from kshot.app import cli, run
from kshot.evaluation.report import report, run_charts


@pytest.fixture
def without_charts(monkeypatch):
    """Runs whose reports have no charts, which are a quarter of the time of a tiny run."""
    monkeypatch.setattr(run, "make_figures", lambda *args: {})
    monkeypatch.setattr(run_charts, "rounds_chart", lambda *args, **options: None)
    monkeypatch.setattr(run_charts, "learning_curve", lambda events: None)
    monkeypatch.setattr(report, "_draw", lambda figures: ({}, []))


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def kshot(capsys, monkeypatch, tmp_path):
    """Call the command line as `kshot("run", ...)` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["kshot", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return Result(code, *capsys.readouterr())

    return call
