"""What would fail at the end is found out before the work, and pretraining that diverges ends as training does."""

import json
from pathlib import Path

import pytest
import yaml
from inputs import tiny

from kshot.app.errors import INVALID
from kshot.files import check_writable, read_lines

NOWHERE = "/dev/null/a"  # /dev/null is no folder


def too_early(*_, **__):
    raise AssertionError("the work began before the output was checked")


@pytest.mark.parametrize(
    ("words", "work"),
    [
        (["adapt", "run", "--support", "s.csv", "--out", NOWHERE], "kshot.app.apply.load"),
        (["evaluate", "run", "--out", NOWHERE], "kshot.app.evaluate.load"),
        (["compare", "run", "--csv", NOWHERE], "kshot.app.terminal.compare"),
        (["compare", "run", "--html", NOWHERE], "kshot.app.terminal.compare"),
        (["recommend", "run", "--interview", "2", "--out", NOWHERE], "kshot.app.recommend.load"),
        (["data", "check", "sinusoid", "--json", NOWHERE], "kshot.app.check.build_source"),
        (["data", "check", "sinusoid", "--html", "."], "kshot.app.check.build_source"),
        (["data", "freeze", "sinusoid", "--out", NOWHERE], "kshot.app.build.build_source"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(words, work, kshot, monkeypatch):
    monkeypatch.setattr(work, too_early)
    result = kshot(*words)
    assert result.code == INVALID
    assert "cannot be written" in result.err or "is a folder" in result.err


def test_a_folder_of_an_output_is_made(tmp_path):
    check_writable(tmp_path / "a" / "b" / "state")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_pretraining_that_diverges_ends_as_training_does(kshot):
    options = {"pretrain": {"steps": 9, "batch": 8, "outer_lr": 1e12}}
    run = tiny.run_file(tiny.SOURCES["sinusoids"], tiny.MODELS["mlp"], tiny.learner("maml"), **options)
    Path("run.yaml").write_text(yaml.safe_dump(run))
    result = kshot("run", "run.yaml", "--out", "out")
    assert result.code == 1, result.err
    assert "pretraining, step" in result.out
    report = json.loads(Path("out/report.json").read_text())
    assert (report["outcome"], report["rounds"], report["test"]) == ("DIVERGED", [], None)
    assert "diverged" in Path("out/report.html").read_text()
    events, _, damaged = read_lines(Path("out/events.jsonl"))
    assert [event["outcome"] for event in events if event["kind"] == "decision"] == ["DIVERGED"]
    assert not damaged
    assert kshot("run", "run.yaml", "--out", "out", "--resume").code == 1


def test_names_with_markup_are_shown_as_they_are(kshot):
    run = tiny.run_file(tiny.SOURCES["sinusoids"], tiny.MODELS["mlp"], tiny.learner("maml"), about="all [/x] [bold]")
    Path("run.yaml").write_text(yaml.safe_dump(run))
    result = kshot("run", "run.yaml", "--out", "o[/x]")
    assert "all [/x] [bold]" in result.out
    assert "report: o[/x]/report.html" in result.out
