"""Choosing among plans of adapting: what is chosen, how predictions are mixed, what checkpoints and run files hold."""

import copy
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from torch import nn

import kshot
from kshot import Batch, Learner, Task, TaskSource, objectives
from kshot.app.build import build_learner, build_model, shapes_of
from kshot.app.run import run
from kshot.app.spec import parse_spec
from kshot.learners import SupportMean, choose
from kshot.learners.baselines.regressors import neighbours, ridge
from kshot.learners.choosing.choose import folds_of, mixed
from kshot.learners.choosing.descriptors import DESCRIPTORS, RIDGE, describe
from kshot.training.checkpoint import load_checkpoint, save_checkpoint
from kshot.training.step import MetaGradient
from kshot.types import one_hot


class LinesAndWaves(TaskSource):
    """Even tasks are noisy lines, odd ones noisy waves."""

    objective, seed = objectives.mse, 0

    def task(self, split, index):
        random = np.random.default_rng([index, ["train", "val", "test"].index(split)])
        x = random.uniform(-1, 1, (60, 1))
        noise = 0.8 if index % 2 == 0 else 0.1
        y = (2 * x if index % 2 == 0 else 2 * np.sin(8 * x)) + noise * random.normal(size=x.shape)
        points = Batch.of(torch.from_numpy(x).float(), torch.from_numpy(y).float())
        return Task(points.rows(slice(30)), points.rows(slice(30, None)))


class Constant(Learner):
    """Predicts a number, and counts how often it adapts."""

    def __init__(self, value, objective=objectives.mse):
        super().__init__(objective)
        self.value, self.calls = value, 0

    def _adapt(self, support):
        self.calls += 1
        return {}

    def predict(self, state, inputs):
        return torch.full((len(inputs), 1), self.value)


def plans():
    return {"line": ridge(1e-3), "near": neighbours(2), "far": Constant(50.0)}


def fitted(**options):
    """A fitted choice of one's own, since tests count calls of its plans."""
    return copy.deepcopy(_fitted(**options))


@cache
def _fitted(**options):
    learner = choose(plans(), num_tasks=60, **options)
    assert kshot.training.fit_closed_form(learner, LinesAndWaves())
    return learner


def taken(learner, index):
    return set(learner.adapt(LinesAndWaves().task("test", index).support)["weights"])


def test_a_learned_choice_takes_the_plan_that_suits_the_task():
    learner = fitted(policy="learned_choice")
    right = [taken(learner, index) == ({"near"} if index % 2 else {"line"}) for index in range(40)]
    assert np.mean(right) > 0.8


def test_the_fixed_plan_is_the_best_in_the_mean_over_training_tasks():
    learner = fitted(policy="fixed")
    losses = [learner.losses(LinesAndWaves().task("train", 1_000_000 + index)) for index in range(60)]
    best = learner.names[int(torch.stack(losses).mean(0).argmin())]
    assert [taken(learner, index) for index in range(4)] == [{best}] * 4


def test_cross_validation_within_the_support_set_needs_no_training_tasks():
    learner = choose(plans() | {"mean": SupportMean(objectives.mse)}, policy="cross_validated", folds=5)
    assert [taken(learner, index) for index in range(4)] == [{"line"}, {"near"}] * 2
    support = LinesAndWaves().task("test", 0).support
    fold = folds_of(support, 5, classes=False).numpy()
    assert sorted(np.bincount(fold)) == [6] * 5
    expected = np.mean(
        [((support.targets[fold == k] - support.targets[fold != k].mean()) ** 2).mean() for k in range(5)]
    )
    assert float(learner.cross_validate(support)[learner.names.index("mean")]) == pytest.approx(expected, rel=1e-5)


def test_one_example_of_a_class_cannot_be_held_out():
    labels = one_hot(torch.tensor([0, 0, 1]), 2)
    assert folds_of(Batch.of(torch.randn(3, 2), labels), 3, classes=True) is None
    both = Batch.of(torch.randn(6, 2), one_hot(torch.tensor([0, 0, 0, 1, 1, 0]), 2))
    fold = folds_of(both._replace(weight=torch.tensor([1.0, 1, 1, 1, 1, 0])), 3, classes=True).tolist()
    assert fold[5] == -1
    assert set(fold[3:5]) == {0, 1}  # both classes are in both folds
    learner = choose({"a": SupportMean(objectives.mse), "b": Constant(0.0)}, policy="cross_validated")
    assert list(learner.adapt(Batch.of(torch.zeros(1, 1), torch.ones(1, 1)))["weights"]) == ["a"]


def test_plans_of_no_weight_do_not_run():
    learner = fitted(max_plans=2)
    learner.parts["far"].calls = 0
    states = [learner.adapt(LinesAndWaves().task("test", index).support) for index in range(6)]
    assert learner.parts["far"].calls == 0
    for state in states:
        assert sum(map(float, state["weights"].values())) == pytest.approx(1)
        assert state["weights"].keys() == state["plans"].keys()
        assert len(state["weights"]) <= 2


def test_weights_beat_the_best_fixed_plan_and_lose_to_the_oracle():
    learner, source = fitted(), LinesAndWaves()
    fixed = kshot.evaluate(fitted(policy="fixed"), source, num_tasks=60, audit=False).metrics["mse"].mean
    weighed = kshot.evaluate(learner, source, num_tasks=60, audit=False).metrics["mse"].mean
    oracle = []
    for index in range(60):
        support, query = source.task("test", index)
        state = learner.oracle(support, query.rows(slice(15)))
        judged = query.rows(slice(15, None))
        oracle.append(float(objectives.mse.loss(learner.predict(state, judged.inputs), judged)))
    assert np.mean(oracle) < fixed
    assert weighed < fixed - 0.5 * (fixed - np.mean(oracle))


def test_audits_of_an_evaluation_pass():
    result = kshot.evaluate(fitted(), LinesAndWaves(), num_tasks=20)
    assert result.trusted, result.trust


def test_mixtures_are_those_of_probabilities_and_of_distributions():
    one, other = torch.randn(2, 5, 3, dtype=torch.float64)
    weights = [torch.tensor(0.3).double(), torch.tensor(0.7).double()]
    classes = mixed(objectives.classification, [one, other], weights)
    torch.testing.assert_close(classes.exp(), 0.3 * one.softmax(1) + 0.7 * other.softmax(1))
    labels = mixed(objectives.multilabel, [one, other], weights)
    torch.testing.assert_close(labels.sigmoid(), 0.3 * one.sigmoid() + 0.7 * other.sigmoid())
    torch.testing.assert_close(mixed(objectives.mse, [one, other], weights), 0.3 * one + 0.7 * other)
    parts = [{"mean": one, "std": other.exp()}, {"mean": other, "std": one.exp()}]
    both = mixed(objectives.gaussian, parts, weights)
    grid = np.linspace(-60, 60, 200_001)
    density = sum(
        float(w) * stats.norm.pdf(grid, float(part["mean"][0, 0]), float(part["std"][0, 0]))
        for w, part in zip(weights, parts)
    ) * (grid[1] - grid[0])
    mean = float((density * grid).sum())
    assert float(both["mean"][0, 0]) == pytest.approx(mean, rel=1e-5)
    assert float(both["std"][0, 0]) == pytest.approx(math.sqrt(float((density * (grid - mean) ** 2).sum())), rel=1e-4)


def test_descriptors_are_leave_one_out_errors():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)), rng.normal(size=(12, 1))
    found = dict(zip(DESCRIPTORS, describe(Batch.of(x, y), classes=False)))
    u, v = StandardScaler().fit_transform(x), StandardScaler().fit_transform(y)
    near = cross_val_predict(KNeighborsRegressor(1), u, v, cv=LeaveOneOut())
    process = GaussianProcessRegressor(RBF(np.sqrt(2)), alpha=RIDGE, optimizer=None)
    smooth = cross_val_predict(process, u, v, cv=LeaveOneOut())[:, None]
    of_mean = np.square(12 / 11 * v).mean()
    for name, made in (("error of the nearest example", near), ("error of a gaussian of width 1 fit", smooth)):
        assert found[name] == pytest.approx(np.log((np.square(v - made).mean() + 1e-4) / of_mean), rel=1e-3)
    assert found["skewness of targets"] == pytest.approx(stats.skew(y[:, 0]))
    assert found["log number of examples"] == pytest.approx(np.log(12))


@pytest.mark.parametrize(
    "batch",
    [
        Batch.of(torch.ones(1, 2), torch.ones(1, 1)),
        Batch.of(torch.ones(4, 2), torch.ones(4, 1)),
        Batch.of({"ids": torch.ones(5, 3, dtype=torch.int64)}, torch.randn(5, 2)),
        Batch.of(torch.randn(5, 2), torch.randn(5, 1), weight=torch.zeros(5)),
    ],
    ids=["one row", "no variation", "symbols", "padding alone"],
)
def test_descriptors_that_do_not_exist_are_missing(batch):
    found = describe(batch, classes=False)
    assert found.shape == (len(DESCRIPTORS),)
    assert not np.isinf(found).any()


def test_a_checkpoint_holds_what_was_learned(tmp_path):
    learner, other = fitted(), choose(plans(), num_tasks=60)
    save_checkpoint(tmp_path / "one", learner, None, {})
    load_checkpoint(tmp_path / "one", other)
    support = LinesAndWaves().task("test", 3).support
    assert torch.equal(learner.weigh(support), other.weigh(support))
    assert float(other.fitted) == 1


def test_plans_that_share_a_model_are_trained_on_the_mean_of_their_losses():
    model, source = kshot.models.mlp(1, 1, hidden=[8]), kshot.sources.sinusoids()
    among = {str(steps): kshot.maml(model, inner_lr=0.01, steps=steps, objective=objectives.mse) for steps in (1, 3)}
    learner = choose({**among, "mean": SupportMean(objectives.mse)}, num_tasks=12)
    task = source.task("train", 0)
    expected = (among["1"](task) + among["3"](task)) / 2
    torch.testing.assert_close(learner(task), expected)
    stacked = source.stack("train", [0, 0])
    torch.testing.assert_close(MetaGradient(learner, "vmap")(stacked), expected.detach())
    trained = [each for each in learner.parameters() if each.requires_grad]
    assert len(trained) == len(list(model.parameters()))
    kshot.fit(learner, source, steps=2, mode="vmap")
    assert float(learner.fitted) == 1
    expected = [learner.losses(source.task("train", 1_000_000 + index)) for index in range(12)]
    torch.testing.assert_close(learner.mean_losses.double(), torch.stack(expected).mean(0), rtol=1e-5, atol=0)


def test_plans_are_fitted_before_they_are_compared():
    pooling = kshot.learners.partial_pooling(1, 1, knots=0, objective=objectives.mse)
    learner = choose({"pooling": pooling, "mean": SupportMean(objectives.mse)}, policy="fixed", num_tasks=20)
    assert kshot.training.fit_closed_form(learner, LinesAndWaves(), after_training=False)
    assert (float(pooling.fitted), float(learner.fitted)) == (1, 0)
    assert kshot.training.fit_closed_form(learner, LinesAndWaves())
    expected = torch.stack([learner.losses(LinesAndWaves().task("train", 1_000_000 + index)) for index in range(20)])
    torch.testing.assert_close(learner.mean_losses.double(), expected.mean(0), rtol=1e-5, atol=0)


def test_a_plan_that_diverges_is_bad_and_no_error():
    learner = choose({"mean": SupportMean(objectives.mse), "wild": Constant(math.inf)}, num_tasks=12)
    kshot.training.fit_closed_form(learner, LinesAndWaves())
    assert taken(learner, 0) == {"mean"}


@pytest.mark.parametrize(
    ("among", "message"),
    [
        ({"a": SupportMean(objectives.mse)}, "needs at least two plans in `among`, got a"),
        ({"a/b": SupportMean(objectives.mse), "c": ridge(1.0)}, "must be text without '/', got 'a/b'"),
        ({"a": SupportMean(objectives.mse), "b": nn.Linear(1, 1)}, "plan 'b' must be a learner, got a Linear"),
        ({"a": SupportMean(objectives.mse), "b": neighbours(1, objectives.gaussian)}, "'a' has mse, 'b' gaussian"),
        (
            {name: Constant(0.0, objectives.mse._replace(predicts=None)) for name in "ab"},
            "take policy fixed or cross_validated",
        ),
    ],
)
def test_what_cannot_be_chosen_among_is_said(among, message):
    with pytest.raises(ValueError, match=message):
        choose(among)


def test_adapting_several_tasks_at_once_is_refused():
    tasks = LinesAndWaves().stack("test", range(3))
    with pytest.raises(ValueError, match="adapts to one task at a time"):
        torch.func.vmap(fitted().adapt)(tasks.support)


RUN = """\
name: choice
source: {kind: sinusoids}
model: {kind: mlp, hidden: [8]}
learner:
  kind: choose
  num_tasks: 12
  among:
    one: {kind: maml, inner_lr: 0.01}
    five: {kind: maml, inner_lr: 0.01, steps: 5}
    network: {kind: cnp, width: 8}
train: {steps_per_round: 2, tasks_per_step: 2, mode: vmap}
target: mse <= 0.001
budget: {rounds: 2}
evaluate: {num_val_tasks: 4, num_test_tasks: 6, shots: []}
baselines: {names: []}
"""


def test_a_run_file_names_the_plans(tmp_path):
    spec = parse_spec(RUN, "run.yaml")
    again = parse_spec(spec.to_yaml(), "again")
    assert again == spec
    shapes = shapes_of(kshot.sources.sinusoids())
    model = build_model(spec, shapes, head=True)
    learner = build_learner(spec, model, shapes)
    assert [learner.parts[name].model is model for name in ("one", "five")] == [True, True]
    assert learner.parts["network"].embedding is None  # the model has a last layer
    assert learner.objective == objectives.mse
    changed = parse_spec(RUN, "run.yaml", ["learner.among.five.steps=7"])
    assert changed.learner.among["five"].steps == 7


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 5", "stepz: 5", r"run.yaml, line 9: unknown key 'learner.among.five.stepz': did you mean 'steps'\?"),
        ("kind: cnp, width: 8", "kind: r2d2", "maml, maml, r2d2 do not go together"),
        ("model: {kind: mlp, hidden: [8]}\n", "", "learner choose adapts a model: the key 'model' is missing"),
        ("  num_tasks: 12\n", "  policy: oracle\n", "learner.policy"),
    ],
)
def test_a_run_file_that_is_wrong_is_said_to_be(old, new, message):
    assert old in RUN
    with pytest.raises(ValueError, match=message):
        parse_spec(RUN.replace(old, new), "run.yaml")


class Doubled(Learner):
    """Twice what another learner predicts."""

    def __init__(self, inner):
        super().__init__(inner.objective)
        self.inner = inner

    def _adapt(self, support):
        return self.inner.adapt(support)

    def predict(self, state, inputs):
        return 2 * self.inner.predict(state, inputs)


def doubled(inner: Learner) -> Doubled:
    return Doubled(inner)


def test_a_learner_of_ones_own_may_take_another(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    own = RUN.replace("kind: cnp, width: 8", 'kind: "test_choosing:doubled", inner: {kind: cnp, width: 8}')
    spec, shapes = parse_spec(own, "run.yaml"), shapes_of(kshot.sources.sinusoids())
    network = build_learner(spec, build_model(spec, shapes, head=True), shapes).parts["network"]
    assert type(network).__name__ == "Doubled"
    assert sum(each.numel() for each in network.inner.parameters()) > 0


def test_a_run_is_trained_and_loaded(tmp_path):
    spec = parse_spec(RUN, "run.yaml")
    report = run(spec, tmp_path / "run")
    trained = kshot.load(tmp_path / "run")
    assert float(trained.learner.fitted) == 1
    assert float(trained.learner.gate.output.weight.abs().max()) > 0
    assert report["protocol"]["ensemble"] == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Regret in mse" in page
    assert "Weights of the parts on each task" in page
    again = kshot.evaluate(trained.learner, kshot.sources.sinusoids(), num_tasks=6, audit=False)
    assert again.metrics["mse"].mean == report["test"]["mse"]["mean"]
