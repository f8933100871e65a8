"""The best of a race are compared on further splits of few groups, apart from the groups of the test."""

import itertools
import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from kshot.app.auto import command, mixing, race
from kshot.app.auto import simple as baselines
from kshot.app.auto.cross_validation import FEW, further_splits
from kshot.app.auto.plans import Plan
from kshot.app.build import build_source
from kshot.app.spec import parse_spec
from kshot.evaluation.intervals import Interval, interval, over_splits

pytestmark = pytest.mark.usefixtures("without_charts")
RUN_FILE = """\
name: patients
source: {kind: table, path: patients.csv, group: patient, target: y, shots: 3, queries: 3}
evaluate: {num_val_tasks: 8, num_test_tasks: 8, shots: []}
"""
LEARNER = "learner: {kind: nearest_centroid}\ntarget: mse <= 1\n"


def write_patients(folder, level_of, number=20):
    """A table in which the responses of each patient are about its level."""
    random = np.random.default_rng(0)
    levels = [(f"p{patient}", level_of(f"p{patient}")) for patient in range(number) for _ in range(12)]
    rows = [f"{name},{random.normal():.4f},{level + random.normal():.4f}" for name, level in levels]
    (folder / "patients.csv").write_text("\n".join(["patient,dose,y", *rows]))


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """The patients of each split, a run file, two constant plans, and a clock that no machine slows."""
    clock = itertools.count(step=0.02)
    monkeypatch.setattr(race.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(race, "time_limit", lambda seconds: nullcontext())
    for name in ("of_fields", "without_model"):
        monkeypatch.setattr(baselines, name, lambda source: {})
    values = {"low": -1.0, "high": 1.0}
    plans = tuple(Plan(name, {"kind": "constants:constant", "value": value}) for name, value in values.items())
    monkeypatch.setattr(command, "plans_for", lambda *args, **options: plans)
    monkeypatch.setenv("KSHOT_EXPERIENCE", str(tmp_path / "own.sqlite"))
    monkeypatch.chdir(tmp_path)
    write_patients(tmp_path, lambda name: 0.0)
    (tmp_path / "patients.yaml").write_text(RUN_FILE)
    source = build_source(parse_spec(RUN_FILE + LEARNER, "patients.yaml", [], tmp_path))
    return {split: set(source.members(split)) for split in ("train", "val", "test")}


def choice_of(kshot, folder, *words):
    done = kshot("auto", "patients.yaml", "--minutes", 2, "--out", folder, "--set", "baselines={names: []}", *words)
    assert done.code == 0, done.err
    return done, json.loads((folder / "report.json").read_text())


def test_a_plan_that_suits_the_validation_groups_alone_is_not_kept(groups, kshot, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "mix", lambda *args: None)
    write_patients(tmp_path, lambda name: 0.9 if name in groups["val"] else -0.5)
    done, _ = choice_of(kshot, tmp_path / "all")
    assert "kept: low, validation mse" in done.out
    monkeypatch.setattr(command, "further_splits", lambda *args: [])
    done, _ = choice_of(kshot, tmp_path / "one")
    assert "kept: high, validation mse" in done.out


def test_the_best_are_compared_on_each_group_once(groups, kshot, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "mix", lambda *args: None)
    write_patients(tmp_path, lambda name: 0.9 if name in groups["val"] else -0.5)
    done, report = choice_of(kshot, tmp_path / "found")
    assert "cross-validation: 5 of 5 splits of the groups" in done.out
    splits = [tmp_path / "found" / "plans" / f"split-{number}" for number in range(1, 5)]
    held = [(folder / "val.txt").read_text().split() for folder in splits]
    assert all(len(names) == len(groups["val"]) for names in held)
    once = [name for names in held for name in names]
    assert len(once) == len(set(once))
    assert set(once) <= groups["train"]
    for folder, names in zip(splits, held):
        trained = (folder / "train.txt").read_text().split()
        assert set(trained) == (groups["train"] | groups["val"]) - set(names)
    for each in report["choice"]["entrants"]:
        logs = [folder / "choice.jsonl" for folder in (tmp_path / "found", *splits)]
        events = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        means = [event["figure"]["mean"] for event in events if event.get("plan") == each["name"] and "figure" in event]
        assert each["splits"] == len(means) == 5
        assert each["figure"]["mean"] == pytest.approx(np.mean(means))
        assert each["figure"]["num_units"] == 5 * len(groups["val"])
        assert each["course"][-1][1]["mean"] == pytest.approx(means[0])
    page = (tmp_path / "found" / "report.html").read_text()
    assert "were compared on 5 splits of the groups into training and validation" in page
    assert "kept, on 5 splits" in page


def test_a_mixture_is_learned_on_all_splits_and_found_again_by_resume(groups, kshot, tmp_path, monkeypatch):
    write_patients(tmp_path, lambda name: 0.9 if name in groups["val"] else 0.0)
    final = command.run

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    words = ("auto", "patients.yaml", "--minutes", 2, "--out", "found", "--set", "baselines={names: []}")
    kept = next(line for line in kshot(*words).out.splitlines() if line.startswith("kept: "))
    monkeypatch.setattr(command, "run", final)
    again = kshot(*words, "--resume")
    assert kept in again.out.splitlines()
    assert "kept: mixture (0.5" in kept  # by the validation groups alone, "high" would have nearly all the weight
    assert f"({5 * 8} tasks of {5 * len(groups['val'])} patients)" in kept
    entrants = json.loads((tmp_path / "found" / "report.json").read_text())["choice"]["entrants"]
    assert {each["name"]: each["splits"] for each in entrants} == {"low": 5, "high": 5, "mixture": 5}


def test_mixtures_and_their_parts_have_figures_in_the_same_units(groups, kshot, tmp_path, monkeypatch):
    """Targets are standardised by the training groups, of which each split has others."""
    seen = []

    def look(race, num_tasks, seconds):
        candidates = race.ranked()
        tasks = mixing._predict([race, *race.splits], candidates, num_tasks)
        for place in range(len(candidates)):
            weight = torch.eye(len(candidates))[place]
            each = zip(tasks.objectives, tasks.predictions, tasks.queries)
            seen.append(([mixing._figure(own, "mse", *of, weight) for own, *of in each], tasks.alone[place]))

    monkeypatch.setattr(command, "mix", look)
    write_patients(tmp_path, lambda name: 30.0 if name == min(groups["train"]) else 0.0)
    choice_of(kshot, tmp_path / "found")
    assert len(seen) == 2
    for mixed, alone in seen:
        assert len(alone) == 5 * 8
        assert mixed == pytest.approx(alone, rel=1e-5)


def test_only_groups_that_are_large_enough_are_held_out(groups, tmp_path):
    small = {"p0", "p1", "p2", "p3"}
    rows = [f"p{patient},{dose},{dose}" for patient in range(20) for dose in range(5 if f"p{patient}" in small else 9)]
    (tmp_path / "patients.csv").write_text("\n".join(["patient,dose,y", *rows]))
    run_file = RUN_FILE.replace("queries: 3", "queries: 6, train_queries: 2") + LEARNER
    parts = {"train": [*small, *(f"p{patient}" for patient in range(4, 14))], "val": ["p14", "p15"], "test": ["p16"]}
    for part, names in parts.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(names))
    files = ["source.split={files: {train: train.txt, val: val.txt, test: test.txt}}"]
    source = build_source(parse_spec(run_file, "patients.yaml", files, tmp_path))
    found = further_splits(parse_spec(run_file, "patients.yaml", [], tmp_path), source)
    assert len(found) == 4
    assert not small & {name for split in found for name in split.val}


TABLE = "path: patients.csv, group: patient, target: y, shots: 3, queries: 3"


@pytest.mark.parametrize(
    "source",
    [
        "{kind: sinusoids}",
        f"{{kind: table, {TABLE}, split: {{column: part}}}}",
        "{kind: table, path: patients.csv, target: y, split: {rows: [0.5, 0.25, 0.25]}, shots: 3}",
        "{kind: table, path: patients.csv, classes: patient, ways: 2, shots: 2, queries: 2}",
        f"{{kind: table, {TABLE.replace('patients', 'many')}, split: {{ratio: [0.2, 0.6, 0.2], exact: true}}}}",
    ],
)
def test_other_tasks_have_no_further_splits(source, tmp_path):
    rows = [(patient, dose) for patient in range(100) for dose in range(8)]
    lines = [f"p{patient},{dose},{dose},{('train', 'val', 'test')[patient % 3]}" for patient, dose in rows]
    (tmp_path / "many.csv").write_text("\n".join(["patient,dose,y,part", *lines]))
    (tmp_path / "patients.csv").write_text("\n".join(["patient,dose,y,part", *lines[:160]]))
    spec = parse_spec(f"name: a\nsource: {source}\n{LEARNER.replace('mse', 'loss')}", "a.yaml", [], tmp_path)
    found = build_source(spec)
    assert further_splits(spec, found) == []
    assert source.count("many") == (len(found.members("val")) >= FEW)


def test_figures_of_several_splits_have_the_interval_of_all_their_units():
    random = np.random.default_rng(0)
    values = random.normal(size=(3, 400))
    parts = [interval(list(each)) for each in values]
    together, whole = over_splits(parts), interval(list(values.ravel()))
    assert together.mean == pytest.approx(whole.mean)
    assert together.ci95 == pytest.approx(whole.ci95, rel=0.02)
    assert (together.num_tasks, together.num_units) == (1200, None)
    single = [Interval(float(mean), float("nan"), 10, num_units=1, unit="patient") for mean in (1, 2, 6)]
    assert over_splits(single).ci95 == pytest.approx(interval([1.0, 2.0, 6.0]).ci95)
    assert str(over_splits(single)).endswith("(30 tasks of 3 patients)")
    assert over_splits(parts[:1]) is parts[0]


def test_figures_of_several_splits_keep_the_skewness_and_the_bounds_of_their_intervals():
    values = np.random.default_rng(1).exponential(size=(4, 12)) ** 3
    parts = [interval(list(each), bounds=(0.0, math.inf)) for each in values]
    assert min(each.low for each in parts) == pytest.approx(0.0)
    together, whole = over_splits(parts), interval(list(values.ravel()), bounds=(0.0, math.inf))
    assert 0 <= together.low < together.mean - together.low < together.high - together.mean
    assert together.mean == pytest.approx(whole.mean)
    assert together.high - together.mean > whole.mean - whole.low > 0
