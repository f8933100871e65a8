"""The functions of benchmarks/reproduce.py, on runs of seconds."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import kshot
from kshot.app.spec import parse_spec
from kshot.evaluation.evaluate import evaluate

PATH = Path(__file__).parents[2] / "benchmarks" / "reproduce.py"
TINY = """\
name: tiny
source: {kind: glyphs, ways: 3, queries: 2, train_ways: 4}
model: {kind: conv4, channels: 4, downsample: stride}
learner: {kind: LEARNER, batchnorm: running}
pretrain: {steps: 2, batch: 8}
train: {steps_per_round: 1, tasks_per_step: 1}
target: accuracy >= 0.999
budget: {rounds: 1}
evaluate: {num_val_tasks: 2, num_test_tasks: 2, shots: []}
"""


@pytest.fixture
def reproduce(monkeypatch):
    spec = importlib.util.spec_from_file_location("reproduce", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reproduce", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    learners = {"tiny": "protonet", "tiny-maml": "proto_maml, inner_lr: 0.01"}
    monkeypatch.setattr(
        module,
        "load_spec",
        lambda name, overrides: parse_spec(TINY.replace("LEARNER", learners[name]), name, overrides),
    )
    return module


@pytest.mark.slow
def test_recipes_are_trained_scored_and_written_beside_what_is_published(reproduce, tmp_path):
    out = tmp_path / "runs"
    cells = (reproduce._of_source(5, 1), reproduce._of_source(3, 2))
    table = reproduce.Table(
        "tiny", cells, ("tiny", "tiny-maml", "absent"), (reproduce.Published("others", (98.8, 99.0)),)
    )
    for recipe, seed in (("tiny", 0), ("tiny", 1), ("tiny-maml", 0)):
        path = reproduce.train(recipe, seed, out, resume=False)
        for cell in cells:
            object.__setattr__(cell, "num_tasks", 4)
        reproduce.score(path, cells)
    (header, _, others, protonet, maml) = reproduce.rows_of(table, out)
    assert "5-way 1-shot" in header
    assert "| 98.8 | 99 |" in others
    scores = [json.loads((out / f"tiny-seed{seed}" / "scores.json").read_text()) for seed in (0, 1)]
    means = [100 * own["3-way 2-shot"]["metrics"]["accuracy"]["mean"] for own in scores]
    assert f"**{sum(means) / 2:.2f}**" in protonet
    assert f"({means[0]:.2f}, {means[1]:.2f})" in protonet
    assert "`tiny`, 2 seeds" in protonet
    assert "`tiny-maml`, 1 seed" in maml
    assert scores[0]["5-way 1-shot"]["episodes_sha256"] == scores[1]["5-way 1-shot"]["episodes_sha256"]
    assert scores[0]["5-way 1-shot"]["inductive"]


@pytest.mark.slow
def test_shared_pretraining_changes_nothing(reproduce, tmp_path):
    reproduce.train("tiny", 0, tmp_path / "shared", resume=False)
    shared = reproduce.train("tiny-maml", 0, tmp_path / "shared", resume=False)
    alone = reproduce.train("tiny-maml", 0, tmp_path / "alone", resume=False)
    other = reproduce.train("tiny-maml", 1, tmp_path / "shared", resume=False)
    assert kshot.load(shared).weights == kshot.load(alone).weights != kshot.load(other).weights
    donor = tmp_path / "shared" / "tiny-seed0"
    times = [
        json.loads(next((path / "checkpoints" / "pretrain").glob("*/meta.json")).read_text())
        for path in (donor, shared)
    ]
    assert times[0]["processor_seconds"] == times[1]["processor_seconds"] > 0
    assert min(reproduce.minutes_of(shared)) > times[0]["processor_seconds"] / 60


def test_what_is_done_is_not_done_again_and_what_is_unfinished_needs_resume(reproduce, tmp_path, monkeypatch):
    path = reproduce.train("tiny", 0, tmp_path, resume=False)
    cells = (reproduce.Cell("one", reproduce._of_source(3, 1).make, 3),)
    first = reproduce.score(path, cells)
    monkeypatch.setattr(reproduce, "evaluate", None)
    monkeypatch.setattr(reproduce, "run", None)
    assert reproduce.train("tiny", 0, tmp_path, resume=False) == path
    assert reproduce.score(path, cells) == first
    (path / "report.json").unlink()
    with pytest.raises(ValueError, match="tiny-seed0 contains an unfinished run: continue it by --resume"):
        reproduce.train("tiny", 0, tmp_path, resume=False)


def test_scores_on_features_are_those_on_images(reproduce, tmp_path):
    opened = kshot.load(reproduce.train("tiny", 0, tmp_path, resume=False))
    source = reproduce._of_source(5, 2).make(opened.spec)
    learner, embedded = reproduce.on_features(opened.learner, source)
    plain, fast = (evaluate(*pair, num_tasks=9) for pair in ((opened.learner, source), (learner, embedded)))
    assert fast.per_task["accuracy"] == plain.per_task["accuracy"]
    assert fast.per_task["loss"] == pytest.approx(plain.per_task["loss"], rel=1e-4)
    assert reproduce.hash_of(source, 9) == plain.episodes_sha256


def test_the_section_replaces_itself_alone(reproduce, tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Measured\n\nbefore\n")
    reproduce.write("first", path)
    path.write_text(path.read_text() + "\nafter\n")
    reproduce.write("second", path)
    text = path.read_text()
    assert text.startswith("# Measured\n\nbefore\n\n")
    assert text.endswith("\n\nafter\n")
    assert "second" in text
    assert "first" not in text


def test_every_recipe_of_the_tables_exists(reproduce):
    from kshot.app.spec import recipes

    assert {recipe for table in reproduce.TABLES for recipe in table.recipes} <= set(recipes())
    for table in reproduce.TABLES:
        assert all(len(published.accuracy) == len(table.cells) for published in table.published)
