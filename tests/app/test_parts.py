"""Runs of several seeds and folds: a folder each, and one report."""

import csv
import json
import shlex

import numpy as np
import pytest
import yaml
from run_files import SHORT, SINUSOID

from kshot.evaluation.per_task import read_tasks

pytestmark = pytest.mark.usefixtures("without_charts")


def test_several_seeds_share_their_episodes_and_one_report(kshot, tmp_path):
    (tmp_path / "run.yaml").write_text(SHORT)
    assert kshot("run", "run.yaml", "--out", "both", "--seeds", "0,1").code == 0
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    own = [json.loads((tmp_path / "both" / f"seed-{seed}" / "report.json").read_text()) for seed in (0, 1)]
    assert own[0]["protocol"]["episodes_sha256"] == own[1]["protocol"]["episodes_sha256"]
    means = [each["test"]["mse"]["mean"] for each in own]
    assert means[0] != means[1]
    assert report["test"]["mse"]["mean"] == pytest.approx(sum(means) / 2)
    assert report["test"]["mse"]["num_seeds"] == 2
    before = (tmp_path / "both" / "seed-1" / "report.json").stat().st_mtime_ns
    assert kshot("run", "run.yaml", "--out", "both", "--seeds", "0,1", "--resume").code == 0
    assert (tmp_path / "both" / "seed-1" / "report.json").stat().st_mtime_ns == before
    refused = kshot("run", "run.yaml", "--seeds", "1")
    assert (refused.code, "two or more different integers" in refused.err) == (2, True)


PATIENTS = """\
name: patients
source: {kind: table, path: patients.csv, group: patient, target: pressure, shots: 3, queries: 3}
model: {kind: mlp, hidden: [4]}
learner: {kind: maml, inner_lr: 0.1}
train: {steps_per_round: 2, tasks_per_step: 2}
target: mse <= 1000000
budget: {rounds: 1}
evaluate: {num_val_tasks: 12, num_test_tasks: 12, shots: [], folds: 4}
baselines: {names: [support_mean, fine_tune], steps: 2, num_val_tasks: 2}
"""


def test_folds_test_each_group_once_and_share_one_report(kshot, tmp_path):
    rows = [f"p{number:02},{dose},{80 + number + 2 * dose}" for number in range(13) for dose in range(7)]
    (tmp_path / "patients.csv").write_text("patient,dose,pressure\n" + "\n".join(rows))
    (tmp_path / "run.yaml").write_text(PATIENTS)
    assert kshot("run", "run.yaml", "--out", "a").code == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert [fold["fold"] for fold in report["folds"]] == [0, 1, 2, 3]
    assert report["test"]["mse"]["num_tasks"] == 12
    own = [json.loads((tmp_path / "a" / f"fold-{fold}" / "report.json").read_text()) for fold in range(4)]
    means = [each["test"]["mse"]["mean"] for each in own]
    assert report["test"]["mse"]["mean"] == pytest.approx(sum(means) / 4)
    assert [each["protocol"]["groups"]["test"] for each in own] == [4, 3, 3, 3]
    assert set(report["paired"]) == {"support_mean", "fine_tune"}
    assert "each class or group is tested once" in (tmp_path / "a" / "report.html").read_text()
    kept = (tmp_path / "a" / "fold-2" / "report.json").stat().st_mtime_ns
    assert kshot("run", "run.yaml", "--out", "a", "--resume").code == 0
    assert (tmp_path / "a" / "fold-2" / "report.json").stat().st_mtime_ns == kept
    assert "13 groups" not in kshot("compare", "a").err


def test_baselines_with_fewer_tasks_are_compared_on_the_same_ones_in_all_folds(kshot, tmp_path):
    rows = [f"p{number:02},{dose},{80 + number + 2 * dose}" for number in range(13) for dose in range(7)]
    (tmp_path / "patients.csv").write_text("patient,dose,pressure\n" + "\n".join(rows))
    (tmp_path / "run.yaml").write_text(PATIENTS)
    change = ["--set", "baselines.num_test_tasks=2", "--set", "baselines.names=[support_mean]"]
    assert kshot("run", "run.yaml", "--out", "a", "--set", "evaluate.num_test_tasks=20", *change).code == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    tables = [read_tasks(tmp_path / "a" / f"fold-{fold}" / "tasks.csv") for fold in range(4)]
    ours = [x for scores, _ in tables for x in scores.per_task["mse"][:2]]
    theirs = [x for _, others in tables for x in others["support_mean"].per_task["mse"]]
    assert (len(ours), len(theirs), report["test"]["mse"]["num_tasks"]) == (8, 8, 20)
    assert report["beside"]["mse"]["mean"] == pytest.approx(np.mean(ours))
    assert report["baselines"]["support_mean"]["mse"]["mean"] == pytest.approx(np.mean(theirs))
    assert report["paired"]["support_mean"]["mean"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    joined, others = read_tasks(tmp_path / "a" / "tasks.csv")
    assert joined.per_task["mse"][:8] == ours
    assert others["support_mean"].per_task["mse"] == theirs
    units = {each["name"]: each["figure"]["mean"] for each in report["by_unit"]["units"]}
    patients = [scores.units.of_task(task)[0] for scores, _ in tables for task in range(5)]
    figures = [x for scores, _ in tables for x in scores.per_task["mse"]]
    of_patient = {name: [x for x, other in zip(figures, patients) if other == name] for name in patients}
    assert units == pytest.approx({name: np.mean(values) for name, values in of_patient.items()})
    page = (tmp_path / "a" / "report.html").read_text()
    assert "One checkpoint for each fold" in page
    again = shlex.split(report["command"])
    assert kshot(*again[1:], "--out", "again").code == 0
    assert json.loads((tmp_path / "again" / "report.json").read_text())["test"] == report["test"]


def test_baselines_with_fewer_tasks_are_compared_on_the_same_ones_of_all_seeds(kshot, tmp_path):
    (tmp_path / "run.yaml").write_text(SHORT)
    change = ["--set", "baselines={names: [support_mean], num_test_tasks: 2}"]
    assert kshot("run", "run.yaml", "--out", "both", "--seeds", "0,1", *change).code == 0
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    first = [read_tasks(tmp_path / "both" / f"seed-{seed}" / "tasks.csv")[0].per_task["mse"][:2] for seed in (0, 1)]
    assert report["beside"]["mse"]["mean"] == pytest.approx(np.mean(first))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"evaluate": {"folds": 99}}, "99 folds need at least 99 groups, and there are 13"),
        ({"source": {"split": {"column": "part"}}}, "evaluate.folds replaces the source's split"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(kshot, tmp_path, change, words):
    rows = [f"p{number:02},{dose},{80 + number + 2 * dose}" for number in range(13) for dose in range(7)]
    (tmp_path / "patients.csv").write_text("patient,dose,pressure\n" + "\n".join(rows))
    data = yaml.safe_load(PATIENTS)
    for key, value in change.items():
        data[key] |= value
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    result = kshot("run", "run.yaml", "--out", "a")
    assert result.code == 2
    assert words in result.err


@pytest.mark.slow
def test_an_interrupted_run_of_several_seeds_goes_on_with_those_that_are_missing(kshot, tmp_path):
    (tmp_path / "run.yaml").write_text(SINUSOID)
    kshot("run", "run.yaml", "--out", "whole", "--seeds", "0,3")
    kshot("run", "run.yaml", "--out", "cut/seed-0")
    assert "already exists and is not empty" in kshot("run", "run.yaml", "--out", "cut", "--seeds", "0,3").err
    kept = (tmp_path / "cut" / "seed-0" / "report.json").stat().st_mtime_ns
    assert kshot("run", "run.yaml", "--out", "cut", "--seeds", "0,3", "--resume").code == 0
    assert (tmp_path / "cut" / "seed-0" / "report.json").stat().st_mtime_ns == kept
    whole, cut = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut"))
    assert whole["test"] == cut["test"]
    assert whole["paired"] == cut["paired"]
    assert cut["protocol"]["seed"] == [0, 3]
    page = (tmp_path / "cut" / "report.html").read_text()
    assert "2 seeds; ±" in page
    board = kshot("compare", "whole", "cut", "cut/seed-0", "--csv", "board.csv")
    rows = list(csv.DictReader((tmp_path / "board.csv").read_text().splitlines()))
    assert [row["num_seeds"] for row in rows].count("2") == 2
    assert "For runs of one seed, another training may change the order" in board.out


def test_a_seed_without_a_usable_round_leaves_no_common_figure(kshot, tmp_path):
    (tmp_path / "run.yaml").write_text(SINUSOID)
    result = kshot("run", "run.yaml", "--out", "a", "--seeds", "0,1", "--set", "learner.inner_lr=1e30")
    assert result.code == 1
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert (report["outcome"], report["test"]) == ("DIVERGED", None)
    assert "2 seeds gave no usable round" in report["reason"]
    assert "a has no test figure" not in result.err
    assert "seed-0 has no test figure" in kshot("compare", "a").err
