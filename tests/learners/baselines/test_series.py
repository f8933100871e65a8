"""The baselines of series: fitted to training series, finite whatever a task holds."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

import kshot
from kshot import Batch, objectives
from kshot.learners.baselines.series import GlobalRidge, baselines, ridge_rows, training_sums
from kshot.sources import series

NAMES = {"last_value", "seasonal_naive", "drift", "ets", "theta", "global_ridge", "global_boosting"}


def waves(path, **options):
    """Series of a season of 6, a level and noise."""
    random, steps = np.random.default_rng(0), np.arange(80)
    columns = {
        f"wave {k}": 20 + 5 * k + (k + 1) * np.sin(steps * np.pi / 3 + k) + 0.3 * random.normal(size=80)
        for k in range(20)
    }
    pl.DataFrame({"step": steps} | columns).write_csv(path)
    return series(path, time="step", **{"context_length": 18, "horizon": 4, "shots": 3, "queries": 3} | options)


@pytest.fixture
def source(tmp_path):
    return waves(tmp_path / "waves.csv")


def test_they_suit_forecasts_alone(source):
    assert source.preprocessor.season == 6
    assert set(baselines(source)) == NAMES
    assert baselines(kshot.sources.sinusoids()) == {}
    assert "seasonal_naive" not in baselines(waves_without_season(source))


def waves_without_season(source):
    import dataclasses

    source.preprocessor = dataclasses.replace(source.preprocessor, season=1)
    return source


@pytest.mark.parametrize("scale", ["support", "level", "global"])
def test_all_candidates_predict_on_all_scales(tmp_path, scale):
    source = waves(tmp_path / "waves.csv", scale=scale)
    mase = {}
    for name, make in baselines(source).items():
        for candidate in make():
            result = kshot.evaluate(candidate, source, split="val", num_tasks=8, audit=False)
            mase.setdefault(name, []).append(result.metrics["mase"].mean)
    assert all(np.isfinite(value) for values in mase.values() for value in values)
    assert len(mase["theta"]) == (1 if scale == "support" else 2)
    assert min(mase["global_ridge"]) < 1.0 < min(mase["last_value"])


def test_the_ridge_is_that_of_scikit_learn(source):
    gram, moment, count = training_sums(source, 6)
    rows = np.concatenate(list(source.members("train").values()))
    inputs, targets = source.examples.take(rows)
    feat, error, _ = ridge_rows(inputs.double(), targets.double(), 6)
    largest = torch.cat([feat, error], 1).abs().amax(1)
    weight = (20 / largest.clamp_min(20)).square()
    assert (weight < 1).any()
    theirs = Ridge(alpha=0.1 * count + 1e-9, fit_intercept=False).fit(feat.numpy(), error.numpy(), weight.numpy())
    learner = GlobalRidge(source.objective, gram, moment, count, season=6, stride=4, l2=0.1)
    state = learner.adapt(source.task("test", 0).support)
    np.testing.assert_allclose(state["weights"].T.numpy(), theirs.coef_, atol=1e-8)
    repeated = GlobalRidge(source.objective, gram, moment, count, season=6, stride=4, l2=0.1, support_weight=2.0)
    support = source.task("test", 0).support
    own, own_error, _ = ridge_rows(support.inputs.double(), support.targets.double(), 6)
    both = torch.cat([feat, own, own]), torch.cat([error, own_error, own_error])
    weight = (20 / torch.cat(both, 1).abs().amax(1).clamp_min(20)).square()
    theirs = Ridge(alpha=0.1 * count + 1e-9, fit_intercept=False).fit(*(each.numpy() for each in both), weight.numpy())
    np.testing.assert_allclose(repeated.adapt(support)["weights"].T.numpy(), theirs.coef_, atol=1e-8)


def test_boosting_finds_what_is_not_linear(tmp_path):
    """The logistic map, whose next value is a parabola of the last."""
    random, columns = np.random.default_rng(0), {}
    for k in range(30):
        values = [random.uniform(0.2, 0.8)]
        for _ in range(60):
            values.append(3.8 * values[-1] * (1 - values[-1]))
        columns[f"series {k}"] = values
    pl.DataFrame({"step": range(61)} | columns).write_csv(tmp_path / "map.csv")
    source = series(tmp_path / "map.csv", time="step", context_length=8, horizon=2, season=1, shots=2, queries=4)
    mase = {
        name: min(
            kshot.evaluate(each, source, num_tasks=20, audit=False).metrics["mase"].mean
            for each in baselines(source)[name]()
        )
        for name in ("global_ridge", "global_boosting")
    }
    assert mase["global_boosting"] < 0.9 * mase["global_ridge"]


def test_the_boosting_is_that_of_scikit_learn(source):
    learner = baselines(source)["global_boosting"]()[0]

    def rows(inputs, feat, naive, scale):
        """A row for each window and step: scaled lags, the step, and the scaled naive forecast."""
        level = inputs[:, -6:, 0].double().mean(1, keepdim=True)
        scaled = (naive - level) / scale[:, None]
        steps = [torch.cat([feat[:, :-1], torch.full((len(feat), 1), h), scaled[:, h : h + 1]], 1) for h in range(4)]
        return torch.stack(steps, 1).flatten(0, 1).numpy()

    inputs, targets = source.examples.take(np.concatenate(list(source.members("train").values())))
    feat, error, scale = ridge_rows(inputs.double(), targets.double(), 6)
    good = torch.cat([feat, error], 1).abs().amax(1) <= 20
    theirs = HistGradientBoostingRegressor(max_iter=50, early_stopping=False, random_state=0)
    naive = inputs[:, -6:-2, 0].double()
    theirs.fit(rows(inputs[good], feat[good], naive[good], scale[good]), error[good].reshape(-1).numpy())
    support, query = source.task("test", 0)
    feat, naive, scale = ridge_rows(query.inputs.double(), None, 6, 4)
    expected = theirs.predict(rows(query.inputs, feat, naive, scale)).reshape(-1, 4) * scale.numpy()[:, None]
    ahead = learner.predict(learner.adapt(support), query.inputs)
    np.testing.assert_allclose(ahead.numpy(), naive.numpy() + expected, rtol=1e-5, atol=1e-5)


def test_a_shift_and_a_scale_of_the_series_shift_and_scale_the_forecasts(source):
    task = source.task("test", 0)
    moved = [Batch(3 * batch.inputs + 7, 3 * batch.targets + 7, batch.weight) for batch in task]
    for name, make in baselines(source).items():
        candidate = make()[0]
        plain = candidate.predict(candidate.adapt(task.support), task.query.inputs)
        other = candidate.predict(candidate.adapt(moved[0]), moved[1].inputs)
        torch.testing.assert_close(other, 3 * plain + 7, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_odd_supports_give_finite_forecasts(source, name):
    candidate = baselines(source)[name]()[-1]
    task = source.task("test", 0)
    query = task.query.inputs.clone()
    query[0, 3] = torch.nan
    constant = Batch(torch.ones_like(task.support.inputs), torch.ones_like(task.support.targets), task.support.weight)
    weightless = task.support._replace(weight=torch.tensor([1.0, 0.0, 0.0]))
    for support in (task.support, constant, task.support.rows(slice(1)), weightless):
        assert torch.isfinite(candidate.predict(candidate.adapt(support), query)).all()
        assert torch.isfinite(candidate.predict(candidate.adapt(support), torch.full_like(query, 5.0))).all()
    padded = Batch(
        torch.cat([task.support.inputs, 1e3 * torch.ones_like(task.support.inputs[:2])]),
        torch.cat([task.support.targets, torch.full_like(task.support.targets[:2], torch.nan)]),
        torch.cat([task.support.weight, torch.zeros(2)]),
    )
    expected = candidate.predict(candidate.adapt(task.support), task.query.inputs)
    torch.testing.assert_close(candidate.predict(candidate.adapt(padded), task.query.inputs), expected)


def test_a_distribution_has_the_errors_of_the_support(source):
    source.objective = objectives.gaussian
    candidate = baselines(source)["last_value"]()[0]
    task = source.task("test", 0)
    prediction = candidate.predict(candidate.adapt(task.support), task.query.inputs)
    error = (task.support.inputs[:, -1:, 0] - task.support.targets).square().mean(0).sqrt()
    torch.testing.assert_close(prediction["std"], error.expand(3, -1))


def test_the_ensemble_is_trained_on_a_source(source):
    learner = kshot.learners.forecast_ensemble((18, 1), horizon=4, hidden=8, objective=source.objective)
    assert learner.season == 6
    before = kshot.evaluate(learner, source, split="val", num_tasks=20, audit=False).metrics["mase"].mean
    kshot.fit(learner, source, steps=30, tasks_per_step=4, outer_lr=0.01, mode="vmap")
    after = kshot.evaluate(learner, source, split="val", num_tasks=20, audit=False).metrics["mase"].mean
    assert after < before
    assert after < 0.8
