"""`kshot auto`: what is learned from, what is kept, and what an interruption costs."""

import itertools
import json
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
import yaml
from inputs.tiny import write_data

import kshot as package
from kshot.app import in_memory
from kshot.app.auto import command, race
from kshot.app.auto import simple as baselines
from kshot.app.auto.command import auto, collect
from kshot.app.auto.plans import Plan
from kshot.app.auto.ranking import SPREAD
from kshot.app.build import build_source
from kshot.deciding.experience import Experience
from kshot.evaluation.baselines import Baseline
from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target

pytestmark = pytest.mark.usefixtures("without_charts")

QUICK = (
    Plan("of classes", {"kind": "protonet"}, {"kind": "mlp", "hidden": [8]}),
    Plan("small maml", {"kind": "maml", "inner_lr": 0.01}, {"kind": "mlp", "hidden": [8]}, None, {"mode": "vmap"}),
)
TINY = {
    "name": "waves", "source": {"kind": "sinusoids", "shots": 5},
    "evaluate": {"num_val_tasks": 6, "num_test_tasks": 8, "shots": []},
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Two plans, of which one does not suit sinusoids, a run file without a plan, and a clock that no machine slows."""
    clock = itertools.count(step=0.02)
    monkeypatch.setattr(race.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(race, "time_limit", lambda seconds: nullcontext())
    monkeypatch.setattr(command, "plans_for", lambda *args, **options: QUICK)
    monkeypatch.setenv("KSHOT_EXPERIENCE", str(tmp_path / "own.sqlite"))  # without the trials of other tests
    (tmp_path / "waves.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path / "waves.yaml"


def test_a_better_simple_baseline_is_kept_and_serves_as_a_run(quick, kshot, tmp_path):
    done = kshot("auto", "waves.yaml", "--minutes", 0.1, "--out", "found")
    assert done.code == 0, done.err
    assert "kept: the simple baseline gaussian_process" in done.out
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    entrants = {each["name"]: each for each in report["choice"]["entrants"]}
    assert set(entrants) == {"support_mean", "gaussian_process", "small maml", "of classes", "mixture"}
    assert entrants["gaussian_process"]["kept"]
    assert "learner protonet predicts" in entrants["of classes"]["failure"]
    assert entrants["gaussian_process"]["course"][-1][1]["mean"] < entrants["small maml"]["course"][-1][1]["mean"]
    page = (tmp_path / "found" / "report.html").read_text()
    assert "kshot.evaluation" not in done.out
    assert "How this plan was chosen" in page
    figure = Interval(**entrants["gaussian_process"]["course"][-1][1])
    spec = yaml.safe_load((tmp_path / "found" / "spec.yaml").read_text())
    assert figure.high <= Target.parse(spec["target"]).value <= 1.001 * figure.high
    assert report["target"] is None
    assert report["reason"] == report["choice"]["reason"]
    assert "No target was given" in page
    assert not any("target is met" in text or "before the target" in text for text in (done.out, page))

    opened, source = package.load(tmp_path / "found"), package.sources.sinusoids(shots=5)
    task = source.task("test", 0)
    other = Baseline("gaussian_process", source.objective)
    other.fit_to_training(source)
    with torch.no_grad():
        expected = other.predict(other.adapt(task.support), task.query.inputs)
        torch.testing.assert_close(opened.logits(opened.learner.adapt(task.support), task.query.inputs), expected)
    known = Experience().trials(shipped=False)
    assert {each.plan["name"] for each in known} >= {"gaussian_process", "small maml"}
    assert all(each.descriptors["kind"] == "numbers" and each.baseline is not None for each in known)


def test_one_simple_baseline_is_measured_after_the_time_if_none_was_before(quick, kshot, tmp_path, monkeypatch):
    @contextmanager
    def limit(seconds):
        if seconds < baselines.LONGEST:
            raise TimeoutError
        yield

    monkeypatch.setattr(race, "time_limit", limit)
    done = kshot("auto", "waves.yaml", "--minutes", 0.1, "--out", "found")
    assert done.code == 0, done.err
    assert "kept: the simple baseline support_mean" in done.out


def test_one_simple_baseline_is_measured_however_short_the_time_is(quick, kshot, tmp_path, monkeypatch):
    @contextmanager
    def limit(seconds):
        if seconds < 1:
            raise TimeoutError
        yield

    monkeypatch.setattr(race, "time_limit", limit)
    monkeypatch.setattr(baselines, "LEAST", 0.0)
    assert kshot("auto", "waves.yaml", "--minutes", 0.1, "--out", "found").code == 0
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    simple = {each["name"]: each for each in report["choice"]["entrants"] if each["simple"]}
    assert [name for name, each in simple.items() if each["course"]] == ["support_mean"]
    assert simple["support_mean"]["failure"] == ""
    assert simple["gaussian_process"]["failure"] == "it was not done after 1 s"


def test_a_better_plan_is_kept_and_resumes_where_it_was_interrupted(quick, kshot, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "of_fields", lambda source: {})  # the mean of the support is the only simple one
    final = command.run

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    kshot("auto", "waves.yaml", "--minutes", 0.1, "--out", "found", "--set", "train={outer_lr: 7}")
    before = (tmp_path / "found" / "choice.jsonl").read_text()
    monkeypatch.setattr(command, "run", final)
    assert kshot("auto", "waves.yaml", "--out", "found").code == 2  # not without --resume
    done = kshot("auto", "waves.yaml", "--minutes", 0.1, "--out", "found", "--resume")
    assert "kept: small maml" in done.out
    after = (tmp_path / "found" / "choice.jsonl").read_text()
    assert after.startswith(before)
    assert "small maml" not in after[len(before) :].replace('"plan": "small maml"', "", 1)  # but for what was kept
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    assert report["baselines"].keys() == {"support_mean"}
    assert package.load(tmp_path / "found").spec.learner.kind == "maml"


def test_six_groups_have_one_for_validation_which_decides_nothing(quick, kshot, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "of_fields", lambda source: {})  # the mean of the support is the only simple one
    random = np.random.default_rng(0)
    rows = [f"{name},{x:.3f},{place + x + 0.1 * random.normal():.3f}"
            for place, name in enumerate("abcdef") for x in random.normal(size=12)]  # fmt: skip
    (tmp_path / "patients.csv").write_text("\n".join(["patient,dose,response", *rows]))
    settings = ["--set=source.group=patient", "--set=source.target=response", "--set=evaluate.num_test_tasks=9"]
    done = kshot("auto", "patients.csv", "--minutes", 0.2, "--out", "found", *settings)
    assert done.code == 0, done.err
    assert "without an interval (100 tasks of 1 patient)" in done.out
    assert "all validation tasks are of one patient, so that plans were compared by experience alone" in done.out
    assert "mixture: left out: all validation tasks are of one unit" in done.out
    assert "nan" not in done.out
    assert "How this plan was chosen" in (tmp_path / "found" / "report.html").read_text()


def test_folds_test_each_group_once_by_what_was_chosen_without_it(quick, kshot, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "of_fields", lambda source: {})  # the mean of the support is the only simple one
    random = np.random.default_rng(0)
    rows = [f"p{place},{x:.3f},{place + x + 0.1 * random.normal():.3f}"
            for place in range(9) for x in random.normal(size=12)]  # fmt: skip
    (tmp_path / "patients.csv").write_text("\n".join(["patient,dose,response", *rows]))
    words = ["auto", "patients.csv", "--minutes", 0.15, "--out", "found", "--set=source.group=patient"]
    words += [
        "--set=source.target=response",
        "--set=evaluate={folds: 3, num_val_tasks: 6, num_test_tasks: 18, shots: []}",
    ]
    final, calls = command.run, []

    def interrupted(spec, out, **options):
        calls.append(out.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return final(spec, out, **options)

    monkeypatch.setattr(command, "run", interrupted)
    asked = []
    monkeypatch.setattr(Experience, "trials", lambda self, **options: asked.append(self) or [])
    kshot(*words)
    assert kshot(*words).code == 2  # not without --resume
    done = kshot(*words, "--resume")
    assert done.code == 0, done.err
    assert calls == ["fold-0", "fold-1", "fold-1", "fold-2"]
    assert not asked  # what the user has tried may be of the groups that are tested here
    assert done.out.count("dose: number") == 1
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    own = [json.loads((tmp_path / "found" / f"fold-{fold}" / "report.json").read_text()) for fold in range(3)]
    metric = report["metric"]
    assert {each["name"] for each in report["by_unit"]["units"]} == {f"p{place}" for place in range(9)}
    assert report["test"][metric]["mean"] == pytest.approx(np.mean([each["test"][metric]["mean"] for each in own]))
    kept = [next(each["name"] for each in one["choice"]["entrants"] if each["kept"]) for one in own]
    assert [each["kept"] for each in report["folds"]] == kept
    assert all(name in report["reason"] for name in kept)
    assert report["target"] is None
    assert "what kshot auto kept in each fold" in (tmp_path / "found" / "report.html").read_text()


def test_a_plan_that_is_interrupted_later_keeps_what_it_reached(quick, kshot, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "of_fields", lambda source: {})
    step, cut = race.Display.step, []

    def interrupted(display, progress, end, stage="train"):
        step(display, progress, end, stage)
        if not cut and list((tmp_path / "found" / "plans").glob("*/checkpoints/train/round-0001")):
            cut.append(progress.step)
            raise TimeoutError

    monkeypatch.setattr(race.Display, "step", interrupted)
    done = kshot("auto", "waves.yaml", "--minutes", 0.1, "--out", "found")
    assert cut
    assert "small maml: validation mse" in done.out
    assert "; no more time, as it was not done after" in done.out
    assert "kept: small maml" in done.out
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    assert len(report["rounds"]) == 1
    (kept,) = [each for each in report["choice"]["entrants"] if each["kept"]]
    assert kept["failure"] == ""
    assert kept["course"][-1][1]["mean"] == pytest.approx(report["val"]["mse"]["mean"])
    assert package.load(tmp_path / "found").num_steps == report["rounds"][0]["step"] < cut[0]


class Waves(package.TaskSource):
    """Sinusoids as an object that no run file can name."""

    def __init__(self):
        self.inner = package.sources.sinusoids(shots=5)
        self.objective, self.seed = self.inner.objective, self.inner.seed

    def task(self, split, index):
        return self.inner.task(split, index)


def test_a_source_in_memory_is_learned_too(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "of_fields", lambda source: {})  # the mean of the support is the only simple one
    settings = ["evaluate={num_val_tasks: 6, num_test_tasks: 8, shots: []}"]
    auto(Waves(), tmp_path / "found", minutes=0.15, overrides=settings)
    learner = package.load(tmp_path / "found").learner
    assert torch.isfinite(learner(Waves().task("test", 0)))
    monkeypatch.setattr(in_memory, "_GIVEN", {})  # as in another process
    opened = package.load(tmp_path / "found")
    source = opened.spec.source
    with pytest.raises(ValueError, match="given as an object in Python"):
        in_memory.given(source.tasks)
    assert in_memory.register(Waves()) == source.model_dump()


def test_a_mixture_is_kept_where_parts_err_differently(quick, kshot, tmp_path, monkeypatch):
    """Of two constant predictions, too low and too high, the mixture lies between."""
    monkeypatch.setattr(baselines, "of_fields", lambda source: {})
    monkeypatch.setattr(baselines, "without_model", lambda source: {})
    too = {side: {"kind": "constants:constant", "value": value} for side, value in (("low", -1.0), ("high", 2.0))}
    options = tuple(Plan(f"too {side}", learner) for side, learner in too.items())
    monkeypatch.setattr(command, "plans_for", lambda *args, **options_: options)
    done = kshot("auto", "waves.yaml", "--minutes", 1.5, "--out", "found", "--set", "baselines={names: []}")
    assert "kept: mixture (0." in done.out, done.err
    opened = package.load(tmp_path / "found")
    weights = opened.spec.learner.weights
    source = build_source(opened.spec)
    y = torch.cat([source.task("val", index).query.targets for index in range(6)]).numpy()
    w = np.linspace(0, 1, 1001)  # of the lower one, by least squares and a penalty of 3 over 6 tasks
    error = ((2 - 3 * w - y) ** 2).mean(0)
    best = w[np.argmin(error / min(error[0], error[-1]) + 3 / 6 * 2 * 2 * (w - 0.5) ** 2)]
    assert weights["too-low"] == pytest.approx(best, abs=0.01)
    task = source.task("test", 0)
    found = opened.learner.predict(opened.learner.adapt(task.support), task.query.inputs)
    torch.testing.assert_close(found, torch.full_like(found, 2 - 3 * weights["too-low"]), atol=1e-3, rtol=0)
    entrants = {each["name"]: each for each in opened.report["choice"]["entrants"]}
    assert entrants["mixture"]["kept"]
    events = [json.loads(line) for line in (tmp_path / "found" / "choice.jsonl").read_text().splitlines()]
    (mixture,) = [event for event in events if event.get("plan") == "mixture" and "expected" in event]
    assert mixture["expected"] == {"gain": 0.0, "weight": 0.0, "error": None, "spread": SPREAD}  # two unknown plans
    assert all(each.plan["name"] != "mixture" for each in Experience().trials(shipped=False))


def test_what_is_collected_has_the_name_of_the_data_and_every_plan_that_suits_them(quick, tmp_path):
    found = collect(TINY, tmp_path / "a", minutes=0.1, data_set="sines", say=lambda line: None)
    assert {each.plan["name"] for each in found} == {"support_mean", "gaussian_process", "small maml"}
    assert {each.data_set for each in found} == {"sines"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing.csv"], "there is no run file, recipe, table, or folder of images or texts nothing.csv"),
        (["rows.csv"], "target"),
        (["rows.csv", "--set", "source.target=y", "--set", "source.group=nobody"], "nobody"),
        (["waves.yaml", "--set", "target=accuracy >= 0.9"], "these tasks report"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_before_any_training(words, sentence, quick, kshot, tmp_path):
    write_data(tmp_path)
    done = kshot("auto", *words, "--minutes", 0.1)
    assert done.code == 2
    assert sentence in done.err
    assert not list(tmp_path.glob("runs/*/plans"))


def test_errors_of_the_check_of_the_data_are_said_before_any_training_and_once(quick, kshot, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "of_fields", lambda source: {})  # the mean of the support is the only simple one
    rows = [f"g{row // 6},{row % 4},1.0" for row in range(60)]
    (tmp_path / "constant.csv").write_text("\n".join(["g,x,y", *rows]))
    values = ["source.group=g", "source.target=y", "evaluate={num_val_tasks: 6, num_test_tasks: 8, shots: []}"]
    words = [word for value in values for word in ("--set", value)]
    done = kshot("auto", "constant.csv", *words, "--minutes", 0.1, "--out", "found")
    assert done.code == 3
    training, report = done.out.split("validation mse", 1)[0], done.out.split("learner  ")[-1]
    said = "tasks of train every target is the same"
    assert said in training
    assert done.out.count(said) == 1 + report.count(said)
