"""The baselines of a run: those that suit its tasks, pretrained for its time, and what one that fails costs."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from run_files import GLYPHS, SINUSOID

pytestmark = pytest.mark.usefixtures("without_charts")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (SINUSOID, {"gaussian_process", "scratch", "fine_tune", "pretrained", "support_mean"}),
        (GLYPHS, {"scratch", "fine_tune", "pretrained_centroid", "pretrained_probe", "centroid"}),
        (GLYPHS.replace("pretrain: {steps: 3, batch: 8}\n", ""), {"scratch", "centroid"}),
    ],
)
def test_baselines_that_fit_the_tasks_are_there_where_none_are_named(text, names):
    from kshot.app.baselines import Setting, baselines_of, need_pretraining
    from kshot.app.build import build_model, build_source, shapes_of
    from kshot.app.spec import parse_spec

    data = yaml.safe_load(text)
    del data["baselines"]["names"]
    spec = parse_spec(yaml.safe_dump(data), "test")
    source = build_source(spec)
    shapes, device = shapes_of(source), torch.device("cpu")
    assert need_pretraining(spec, source.objective)
    pretrained = [build_model(spec, shapes, head=True)] if "fine_tune" in names else []
    assert set(baselines_of(Setting(spec, source, shapes, device, pretrained))) == names


def test_baselines_are_pretrained_for_the_time_of_the_learner_and_kept_for_later_evaluations(kshot, tmp_path):
    data = yaml.safe_load(GLYPHS.replace("num_test_tasks: 3", "budget: 1.0").replace("fine_tune, ", ""))
    data["evaluate"]["shots"] = []
    del data["pretrain"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    assert kshot("run", "run.yaml", "--out", "a").code in (0, 1)
    folder = tmp_path / "a" / "checkpoints" / "pretrain-baselines"
    steps = json.loads((folder / "steps.json").read_text())["steps"]
    assert steps > 1
    assert (folder / f"step-{steps:07d}").is_dir()
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["failures"] == []
    assert report["baselines"]["pretrained_centroid"]["accuracy"]["num_tasks"] == 4  # as many as the learner
    again = json.loads(kshot("evaluate", "a", "--tasks", 4, "--json").out)
    assert again["baselines"]["pretrained_centroid"] == report["baselines"]["pretrained_centroid"]


def test_the_pretraining_of_the_learner_counts_by_its_steps_however_slow_they_were(tmp_path, monkeypatch):
    from kshot.app import pretraining
    from kshot.app.build import build_model, build_source, shapes_of
    from kshot.app.folder import RunFolder
    from kshot.app.spec import parse_spec

    spec = parse_spec(GLYPHS.replace("num_test_tasks: 3", "budget: 2.0"), "test")
    source = build_source(spec)
    shapes = shapes_of(source)
    monkeypatch.setattr(pretraining, "seconds_per_step", lambda *_: 0.5)
    found = pretraining.pretraining_of_baselines(
        spec, RunFolder(tmp_path), lambda: build_model(spec, shapes, head=True), source, seconds=2.0
    )
    assert spec.pretrain.steps == 3
    assert found.options.steps == 2 * (3 + 2.0 / 0.5)


def test_a_failing_baseline_is_reported_and_costs_nothing_else(kshot, tmp_path, monkeypatch):
    from kshot.learners import SupportMean

    def broken(self, support):
        raise RuntimeError("no mean today")

    monkeypatch.setattr(SupportMean, "_adapt", broken)
    (tmp_path / "run.yaml").write_text(SINUSOID)
    result = kshot("run", "run.yaml", "--out", "a")
    assert result.code == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["failures"] == [{"what": "baseline support_mean", "error": "RuntimeError: no mean today"}]
    assert set(report["baselines"]) == {"scratch"}
    assert "Not compared, because they gave no figure: support mean." in " ".join(result.out.split())
    assert report["beside"]["mse"]["num_tasks"] == report["baselines"]["scratch"]["mse"]["num_tasks"] == 4
    assert "on the same 4 tasks" in " ".join(result.out.split())
    assert "no mean today" in (tmp_path / "a" / "failures.log").read_text()
    assert "FAILED baseline support_mean: RuntimeError: no mean today" in result.out
    assert "What failed" in (tmp_path / "a" / "report.html").read_text()


def test_a_baseline_without_a_finite_figure_is_tried_again_with_lower_rates(kshot, tmp_path):
    (tmp_path / "run.yaml").write_text(SINUSOID.replace("steps: 2, num_val", "steps: 60, inner_lrs: [7.0], num_val"))
    assert kshot("run", "run.yaml", "--out", "a").code == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["failures"] == []
    assert math.isfinite(report["baselines"]["scratch"]["mse"]["mean"])


def test_training_on_other_ways_than_the_test_leaves_the_baselines_whole(kshot, tmp_path):
    text = GLYPHS.replace("ways: 3,", "ways: 3, train_ways: 4,").replace("kind: maml, inner_lr: 0.1", "kind: protonet")
    text = text.replace("num_test_tasks: 4}", "num_test_tasks: 4, shots: []}")
    (tmp_path / "run.yaml").write_text(text)
    assert kshot("run", "run.yaml", "--out", "a").code in (0, 1)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["failures"] == []
    assert set(report["baselines"]) == {"scratch", "fine_tune", "pretrained_centroid", "centroid"}


def test_a_baseline_that_cannot_be_had_is_told_before_anything_is_trained(kshot, tmp_path):
    (tmp_path / "run.yaml").write_text(SINUSOID)
    result = kshot("run", "run.yaml", "--out", "a", "--set", "baselines={names: [fine_tune], budget: 0}")
    assert (result.code, Path("a").exists()) == (2, False)
    assert "baseline 'fine_tune' needs a pretrained model" in result.err
