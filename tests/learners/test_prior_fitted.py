"""The in-context learner of tables and the tables that it is trained on."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.kernel_ridge import KernelRidge
from sklearn.neighbors import KNeighborsClassifier

import kshot
from kshot import Batch, objectives
from kshot.app.build import build_learner, build_model
from kshot.app.spec import load_spec
from kshot.learners.amortised.prior_fitted import RIDGES, KernelRidges
from kshot.sources import tabular_priors
from kshot.types import unstack


def table(seed: int = 0, rows: int = 20, features: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=random)
    return x, (x[:, :1] - x[:, 1:2].square() + 0.1 * torch.randn(rows, 1, generator=random))


def test_the_fits_are_kernel_ridges_weighed_by_rows_left_out():
    z, y = (leaf.double() for leaf in table())
    fits, weight = KernelRidges(), torch.ones(20, dtype=torch.float64)
    state, left_out = fits.fit(z, y, weight)
    asked = table(1)[0].double()
    found, mean = fits.predict(state, asked), y.mean()
    target = (y - mean).numpy()
    for k, (kernel, between) in enumerate(zip(fits.kernels(z, z), fits.kernels(asked, z), strict=True)):
        one_out, others = np.zeros((len(RIDGES), 20)), []
        for number, ridge in enumerate(RIDGES):
            model = KernelRidge(alpha=ridge, kernel="precomputed")
            for i in range(20):
                rest = np.delete(np.arange(20), i)
                model.fit(kernel[rest][:, rest].numpy(), target[rest])
                one_out[number, i] = model.predict(kernel[i : i + 1, rest].numpy())[0, 0]
            others.append(model.fit(kernel.numpy(), target).predict(between.numpy())[:, 0])
        error = ((target[:, 0] - one_out) ** 2).sum(1) / (target**2).sum()
        share = (error + 1e-3) ** (-0.15 * 20)
        share /= share.sum()
        np.testing.assert_allclose(left_out[:, k].numpy(), share @ one_out, atol=1e-6)
        np.testing.assert_allclose(found[:, k].numpy(), share @ np.array(others), atol=1e-6)
        assert float(state["error"][k]) == pytest.approx(share @ error)


def test_a_prediction_is_the_weighed_fits_and_a_correction():
    """In logits for classes; in units of the support for numbers. The transformer is replaced by a constant row."""
    x, y = (leaf.double() for leaf in table())
    asked, ones, labels = table(1)[0].double(), torch.ones(20).double(), torch.arange(20) % 3
    hidden = torch.randn(16, dtype=torch.float64)
    for objective, targets in ((objectives.classification, torch.eye(3).double()[labels]), (objectives.gaussian, y)):
        learner = kshot.learners.prior_fitted(cell_width=8, width=16, heads=2, classes=3, objective=objective).double()
        for layer in (learner.fit_weights, learner.correction):
            torch.nn.init.normal_(layer.weight)
        learner._run = lambda state, z, cells, memory=None: (hidden.expand(len(z), -1), {})
        center, spread = (
            (targets.mean(0), targets.std(0, correction=0)) if objective.predicts == "distribution" else (0, 1)
        )
        z = (x - x.mean(0)) / x.std(0, correction=0)
        state, _ = learner.fits.fit(4 * (z / 4).tanh(), (targets - center) / spread, ones)
        z = (asked - x.mean(0)) / x.std(0, correction=0)
        fits = learner.fits.predict(state, 4 * (z / 4).tanh()).unflatten(1, (3, -1))
        row = learner.norm(hidden)
        weighed = (learner.fit_weights(row).exp()[:, None] * fits).sum(1) / 3
        found, correction = learner.predict(learner.adapt(Batch(x, targets, ones)), asked), learner.correction(row)
        if objective.classifies:
            torch.testing.assert_close(found, (targets.mean(0) + 0.01).log() + 6 * weighed + correction)
        else:
            torch.testing.assert_close(found["mean"], center + spread * (weighed + correction[:1]))
            std = 0.01 + 0.99 * torch.nn.functional.softplus(correction[1:])
            torch.testing.assert_close(found["std"], (spread * std).expand(len(asked), 1))


def test_columns_that_do_not_vary_and_the_order_of_columns_change_nothing():
    learner = kshot.learners.prior_fitted(cell_width=8, width=16, heads=2)
    for parameter in learner.parameters():  # as after training
        torch.nn.init.normal_(parameter, std=0.3)
    x, y = table()
    labels, asked = (y[:, 0] > 0).long(), table(1)[0]
    expected = learner.predict(learner.adapt(Batch.of(x, labels, ways=2)), asked)
    for change in (
        lambda leaf: torch.cat([leaf, torch.full((20, 3), 7.0)], 1),
        lambda leaf: leaf[:, [2, 0, 3, 1]],
        lambda leaf: 100 * leaf - 3,
    ):
        found = learner.predict(learner.adapt(Batch.of(change(x), labels, ways=2)), change(asked))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_regression_follows_the_targets_unit():
    learner = kshot.learners.prior_fitted(cell_width=8, width=16, heads=2, objective=objectives.gaussian)
    for parameter in learner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    (x, y), asked = table(), table(1)[0]
    found = learner.predict(learner.adapt(Batch.of(x, y)), asked)
    scaled = learner.predict(learner.adapt(Batch.of(x, 50 * y + 7)), asked)
    torch.testing.assert_close(scaled["mean"], 50 * found["mean"] + 7, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(scaled["std"], 50 * found["std"], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("load", "least"), [(load_iris, 0.9), (load_wine, 0.9)])
def test_an_untrained_learner_starts_from_the_fits(load, least):
    x, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = torch.from_numpy(x[order]).float(), torch.from_numpy(y[order])
    learner = kshot.learners.prior_fitted()
    state = learner.adapt(Batch.of(x[:40], y[:40], ways=3))
    assert float((learner.predict(state, x[40:]).argmax(1) == y[40:]).float().mean()) > least


def test_training_on_synthetic_tables_makes_unseen_ones_likelier():
    source = tabular_priors(target_type="regression", rows=20, features=4, queries=16)
    learner = kshot.learners.prior_fitted(cell_width=16, width=32, layers=1, objective=objectives.gaussian)
    before = kshot.evaluate(learner, source, split="val", num_tasks=64, audit=False)
    kshot.fit(learner, source, steps=40, tasks_per_step=16, outer_lr=3e-3, mode="vmap")
    after = kshot.evaluate(learner, source, split="val", num_tasks=64, audit=False)
    gain = kshot.evaluation.interval(list(np.subtract(before.per_task["loss"], after.per_task["loss"])))
    assert gain.low > 0


def test_what_does_not_fit_is_told():
    learner = kshot.learners.prior_fitted(classes=3, width=16, heads=2)
    with pytest.raises(ValueError, match="at most 3 ways"):
        learner.adapt(Batch.of(torch.randn(5, 2), torch.arange(5), ways=5))
    with pytest.raises(ValueError, match="classification and gaussian"):
        kshot.learners.prior_fitted(objective=objectives.mse)
    with pytest.raises(ValueError, match="target_type must be"):
        tabular_priors(target_type="ranking")
    with pytest.raises(ValueError, match="rows must be at least 4"):
        tabular_priors(rows=2)


@pytest.mark.parametrize("target_type", ["classification", "regression"])
def test_synthetic_tables_keep_the_contract_of_a_source(target_type):
    source = tabular_priors(target_type=target_type, rows=(6, 30), features=(1, 9), seed=2)
    again = tabular_priors(target_type=target_type, rows=(6, 30), features=(1, 9), seed=2)
    whole = source.stack("train", range(8, 24))  # of two groups, hence of two sizes
    for index, task in zip(range(8, 24), unstack(whole)):
        alone = again.task("train", index)
        rows, features = alone.support.inputs.shape
        torch.testing.assert_close(task.support.inputs[:rows, :features], alone.support.inputs)
        assert (task.support.weight[rows:] == 0).all()
        assert (task.support.inputs[:, features:] == 0).all()
        assert all(torch.isfinite(leaf).all() for batch in alone for leaf in batch)
        if target_type == "classification":
            seen = (alone.support.targets * alone.support.weight[:, None]).sum(0) > 0
            scored = alone.query.targets[alone.query.weight > 0]
            assert seen.sum() >= 2
            assert len(scored) > 0
            assert (scored.sum(0)[~seen] == 0).all()
    group = source.stack("train", range(16, 32)).support
    assert group.inputs.shape[1:] == source.task("train", 16).support.inputs.shape  # no padding within a group


def test_most_synthetic_tables_tell_of_their_classes():
    source = tabular_priors()
    better = []
    for index in range(0, 640, 8):
        support, query = source.task("val", index)
        kept = query.weight > 0
        model = KNeighborsClassifier(1).fit(support.inputs.numpy(), support.targets.argmax(1).numpy())
        right = model.predict(query.inputs[kept].numpy()) == query.targets[kept].argmax(1).numpy()
        commonest = query.targets[kept].argmax(1) == support.targets.sum(0).argmax()
        better.append(right.mean() > float(commonest.float().mean()))
    assert np.mean(better) > 0.6


@pytest.mark.parametrize("recipe", ["tabular", "tabular-regression", "np-gp"])
def test_recipes_build_learners_that_are_networks_of_their_own(recipe):
    spec = load_spec(recipe)
    objective = {"tabular": "classification"}.get(recipe, "gaussian")
    shapes = {"inputs": [1], "targets": [1 if objective == "gaussian" else 10], "objective": objective}
    learner = build_learner(spec, build_model(spec, shapes, head=True), shapes)
    again = build_learner(spec, build_model(spec, shapes, head=True), shapes)
    for a, b in zip(learner.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    if recipe == "np-gp":  # whose inputs a model may embed
        spec = load_spec(recipe, ["model={kind: mlp, hidden: [3]}"])
        embedded = build_learner(spec, build_model(spec, shapes, head=False), shapes)
        assert sum(p.numel() for p in embedded.parameters()) > sum(p.numel() for p in learner.parameters())
    else:
        with pytest.raises(ValueError, match="network of its own"):
            load_spec(recipe, ["model={kind: mlp}"])
    with pytest.raises(ValueError, match="needs a model"):
        load_spec(recipe, ["baselines.names=[scratch]"])


def test_cnaps_of_a_run_file_reads_images_by_a_network_of_the_same_kind():
    learner = "learner={kind: cnaps, film: [body.1, body.5], task_dim: 12}"
    spec = load_spec("glyphs", [learner, "model.channels=4"])
    shapes = {"inputs": [1, 28, 28], "targets": [5], "objective": "classification"}
    cnaps = build_learner(spec, build_model(spec, shapes, head=False), shapes)
    batch = Batch.of(torch.rand(6, 1, 28, 28), torch.tensor([0, 1, 2, 0, 1, 2]), ways=3)
    state = cnaps.adapt(batch)
    assert state["context"].shape == (12,)
    assert cnaps.predict(state, batch.inputs).shape == (6, 3)
    with pytest.raises(ValueError, match="'model' is missing"):
        load_spec("np-gp", ["learner={kind: protonet}"])
