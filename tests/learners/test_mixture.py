"""Mixtures of trained learners: what they predict, the weights on held-out tasks, and what run files hold."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import kshot
from kshot import Batch, Learner, objectives
from kshot.app.build import build_learner, build_model, shapes_of
from kshot.app.spec import parse_spec
from kshot.evaluation.baselines import Baseline
from kshot.learners import SupportMean, choose, mixture
from kshot.learners.baselines.regressors import ridge
from kshot.learners.choosing.mixture import fit_weights
from kshot.training.closed_form import fit_closed_form

SINES = kshot.sources.sinusoids(shots=8)


def parts():
    return {"mean": SupportMean(objectives.mse), "line": ridge(0.1)}


def test_values_are_averaged_under_the_weights():
    task, among = SINES.task("test", 0), parts()
    learner = mixture(among, weights={"mean": 3, "line": 1})
    mean, line = (part.predict(part.adapt(task.support), task.query.inputs) for part in among.values())
    found = learner.predict(learner.adapt(task.support), task.query.inputs)
    torch.testing.assert_close(found, 0.75 * mean + 0.25 * line)
    assert learner.num_members == 2
    assert learner.inference == "inductive"


def test_a_part_that_sees_all_queries_makes_the_mixture_transductive():
    learner = mixture(parts(), weights={"mean": 1, "line": 1})
    learner.parts["line"].transductive = True
    assert learner.inference == "transductive"


@pytest.mark.parametrize("tune", [False, True])
def test_training_changes_the_parts_only_if_it_is_to(tune):
    nets = {
        name: kshot.maml(kshot.models.mlp(1, 1, hidden=[4]), inner_lr=0.01, objective=objectives.mse) for name in "ab"
    }
    learner = mixture(nets, weights={"a": 1, "b": 2}, tune=tune)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    result = kshot.deciding.run_until(
        learner, SINES, "mse <= 0", budget=kshot.deciding.Budget(rounds=2), steps_per_round=2, num_val_tasks=4
    )
    assert len(result.rounds) == (2 if tune else 1)
    same = [torch.equal(value, before[name]) for name, value in learner.state_dict().items() if name != "weight_P"]
    assert not any(same) if tune else all(same)
    assert torch.equal(learner.weight_P, before["weight_P"])


@pytest.mark.parametrize("objective", [objectives.mse, objectives.classification])
def test_weights_minimise_the_mean_loss_of_the_mixture(objective):
    random = np.random.default_rng(0)
    predictions, queries = [], []
    for rows in (4, 6, 4, 5, 6, 4):  # tasks of unlike sizes
        if objective.classifies:
            label = random.integers(3, size=rows)
            targets = torch.eye(3)[label]
            each = [torch.from_numpy(random.normal(size=(rows, 3)) + k * np.eye(3)[label]).float() for k in (0.3, 1, 1)]
        else:
            y = random.normal(size=(rows, 1))
            targets = torch.from_numpy(y).float()
            each = [torch.from_numpy(y + random.normal(scale=s, size=y.shape)).float() for s in (0.5, 0.7, 2)]
        predictions.append(each)
        queries.append(Batch.of(targets, targets))

    def mean_loss(logits):
        w = np.exp(logits - logits.max())
        w = w / w.sum()
        losses = []
        for each, query in zip(predictions, queries):
            y = query.targets.double().numpy()
            if objective.classifies:
                p = sum(a * b.double().softmax(-1).numpy() for a, b in zip(w, each))
                losses.append(-np.log((p * y).sum(1)).mean())
            else:
                losses.append(((sum(a * b.double().numpy() for a, b in zip(w, each)) - y) ** 2).mean())
        return np.mean(losses)

    best = minimize(mean_loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10})
    found = fit_weights(objective, predictions, queries)
    assert mean_loss(found.double().log().numpy()) == pytest.approx(best.fun, rel=1e-4)
    expected = np.exp(best.x - best.x.max())
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.01)


def test_shrinkage_draws_the_weights_to_equal_ones_whatever_the_unit_of_the_targets():
    targets = torch.tensor([[1.0], [2.0], [4.0]])
    for unit in (1.0, 1000.0):
        y = unit * targets
        each, query = [[y - unit, y + 3 * unit]], [Batch.of(y, y)]
        w = np.linspace(0, 1, 10001)  # of the first: (w (-1) + (1 - w) 3)², over the least loss 1, and 2 λ 2 (w - 1/2)²
        best = w[np.argmin((3 - 4 * w) ** 2 + 4 * 2.0 * (w - 0.5) ** 2)]
        found = fit_weights(objectives.mse, each, query, shrinkage=2.0)
        assert float(found[0]) == pytest.approx(best, abs=1e-3)


def test_a_part_without_error_takes_all_weight():
    y = torch.tensor([[1.0], [2.0]])
    found = fit_weights(objectives.mse, [[y, y + 1]], [Batch.of(y, y)])
    assert float(found[0]) > 0.98


RUN = """\
name: mixed
source: {kind: sinusoids}
learner:
  kind: mixture
  weights: {narrow: 1, wide: 3, process: 1}
  among:
    narrow: {kind: maml, inner_lr: 0.01, model: {kind: mlp, hidden: [8]}}
    wide: {kind: r2d2, model: {kind: mlp, hidden: [16]}}
    process: {kind: "kshot.evaluation.baselines:baseline", name: gaussian_process}
target: mse <= 0.001
"""


def test_a_run_file_gives_each_part_a_model_of_its_own():
    spec = parse_spec(RUN, "run.yaml")
    assert parse_spec(spec.to_yaml(), "again") == spec
    shapes = shapes_of(kshot.sources.sinusoids())
    learner = build_learner(spec, build_model(spec, shapes, head=False), shapes)
    widths = {name: next(part.parameters()).shape[0] for name, part in learner.parts.items() if name != "process"}
    assert widths == {"narrow": 8, "wide": 16}
    layers = [each for each in learner.parts["wide"].modules() if isinstance(each, nn.Linear)]
    assert layers[-1].out_features == 16  # features, and no last layer
    assert isinstance(learner.parts["process"], Baseline)
    fit_closed_form(learner, kshot.sources.sinusoids())
    with torch.no_grad():
        assert torch.isfinite(learner(kshot.sources.sinusoids().task("test", 0)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "hidden: [8]",
            "hiden: [8]",
            r"line 7: unknown key 'learner.among.narrow.model.hiden': did you mean 'hidden'\?",
        ),
        (", model: {kind: mlp, hidden: [16]}", "", "learner mixture adapts a model: the key 'model' is missing"),
        ("name: gaussian_process}", "name: gaussian_process, model: {kind: mlp}}", "is a network of its own"),
        ("kind: r2d2", "kind: choose, among: {a: {kind: r2d2}, b: {kind: maml, inner_lr: 1}}", "do not go together"),
    ],
)
def test_a_run_file_that_is_wrong_is_said_to_be(old, new, message):
    assert old in RUN
    with pytest.raises(ValueError, match=message):
        parse_spec(RUN.replace(old, new), "run.yaml")


class Other(Learner):
    def _adapt(self, support):
        return {}

    def predict(self, state, inputs):
        return inputs


@pytest.mark.parametrize(
    ("among", "weights", "message"),
    [
        ({"a": ridge(1.0)}, {"a": 1}, "needs at least two learners"),
        (parts(), {"mean": 1}, "`weights` must name line, mean, got mean"),
        (parts(), {"mean": 0, "line": 0}, "must not all be 0"),
        (parts(), {"mean": -1, "line": 1}, "weights"),
        ({"a/b": ridge(1.0), "c": ridge(1.0)}, {"a/b": 1, "c": 1}, "without '/'"),
        ({"a": ridge(1.0), "b": Other(objectives.classification)}, {"a": 1, "b": 1}, "must share an objective"),
    ],
)
def test_what_cannot_be_mixed_is_refused(among, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(among, weights=weights)


def test_a_choice_may_be_a_part():
    learner = mixture(
        {"choice": choose(parts(), num_tasks=12), "mean": SupportMean(objectives.mse)}, weights={"choice": 1, "mean": 1}
    )
    fit_closed_form(learner, SINES)
    task = SINES.task("test", 0)
    assert set(learner.adapt(task.support)) == {"choice", "mean"}
    assert torch.isfinite(learner(task))
