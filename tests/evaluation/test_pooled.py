"""rmse and R² over all queries against scikit-learn's, and their intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score

from kshot import Batch, objectives
from kshot.evaluation.pooled import PooledMeter
from kshot.evaluation.units import Units


def simulated(num_tasks: int, seed: int, units: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Targets (n, 1) of each task around its unit's own level, and predictions with an error; n differs."""
    random = np.random.default_rng(seed)
    level = random.normal(0, 2, units or num_tasks)
    level = level[np.arange(num_tasks) % len(level)]
    truth = [each + random.normal(0, 1, (random.integers(2, 9), 1)) for each in level]
    return truth, [each + random.normal(0, 0.5, each.shape) for each in truth]


def meter_of(objective, truth, predicted) -> PooledMeter:
    meter = PooledMeter(objective)
    for true, guess in zip(truth, predicted):
        batch = Batch.of(torch.zeros(len(true), 1), torch.from_numpy(true))
        meter.add(torch.from_numpy(guess), batch)
    return meter


def test_rmse_and_r2_are_those_of_scikit_learn_on_all_queries():
    truth, predicted = simulated(40, 0)
    (found,) = meter_of(objectives.in_units([3.0], ["price"]), truth, predicted).result()
    true, guess = np.concatenate(truth), np.concatenate(predicted)
    assert found.rmse.mean == pytest.approx(3 * mean_squared_error(true, guess) ** 0.5)
    assert found.r2.mean == pytest.approx(r2_score(true, guess))
    centre = np.concatenate([np.full_like(each, each.mean()) for each in truth])
    assert found.r2_within.mean == pytest.approx(r2_score(true - centre, guess - centre))
    assert found.r2_within.mean < found.r2.mean
    of_tasks = np.mean([r2_score(t, p) for t, p in zip(truth, predicted)])
    assert abs(of_tasks - found.r2.mean) > 0.05, "a mean of the tasks' R² is another figure"


def test_within_units_is_against_the_mean_of_all_tasks_of_a_unit():
    truth, predicted = simulated(40, 1, units=5)
    units = Units(np.arange(40) % 5, "patient")
    (found,) = meter_of(objectives.mse, truth, predicted).result(units)
    of_row = np.concatenate([np.full(len(each), task % 5) for task, each in enumerate(truth)])
    true, guess = np.concatenate(truth)[:, 0], np.concatenate(predicted)[:, 0]
    centre = np.array([true[of_row == unit].mean() for unit in range(5)])[of_row]
    assert found.r2_within.mean == pytest.approx(r2_score(true - centre, guess - centre))
    assert found.r2.num_units == 5


def test_targets_of_several_dimensions_are_weighted_by_their_variance():
    random = np.random.default_rng(2)
    true = random.normal([0.0, 100.0], [1.0, 5.0], (30, 2))
    guess = true + random.normal(0, 1, true.shape)
    (found,) = meter_of(objectives.mse, [true[:10], true[10:]], [guess[:10], guess[10:]]).result()
    assert found.r2.mean == pytest.approx(r2_score(true, guess, multioutput="variance_weighted"))
    assert found.rmse.mean == pytest.approx(mean_squared_error(true, guess) ** 0.5)
    each = meter_of(objectives.in_units([1.0, 2.0], ["a", "b"]), [true], [guess]).result()
    assert [one.target for one in each] == ["a", "b"]
    assert [one.r2.mean for one in each] == pytest.approx(list(r2_score(true, guess, multioutput="raw_values")))


def test_ratings_are_clipped_to_their_scale_and_levels_count_as_numbers():
    batch = Batch.of(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
    meter = PooledMeter(objectives.rating(3.0, 1.0, 1.0, 5.0, like=4.0))
    meter.add(torch.tensor([[0.0], [9.0]]), batch)
    assert meter.result()[0].rmse.mean == 0
    stars = PooledMeter(objectives.levels([1, 2, 4], mean=2.0, std=1.0, like=4))
    stars.add(
        torch.tensor([[0.0, 0.0, 99.0], [0.0, 99.0, 99.0]]), Batch.of(torch.zeros(2, 1), torch.tensor([2, 0]), ways=3)
    )
    assert stars.result()[0].rmse.mean == pytest.approx(((4 - 4) ** 2 / 2 + (3 - 1) ** 2 / 2) ** 0.5)


def test_there_is_no_r2_without_a_spread_and_none_for_classes():
    (found,) = meter_of(objectives.mse, [np.full((3, 1), 7.7)] * 2, [np.full((3, 1), 7.0)] * 2).result()
    assert (found.r2, found.r2_within) == (None, None)
    assert found.rmse.mean == pytest.approx(0.7)
    meter = PooledMeter(objectives.classification)
    meter.add(torch.eye(2), Batch.of(torch.zeros(2, 1), torch.tensor([0, 1]), ways=2))
    assert meter.result() == []


def test_padding_does_not_count():
    batch = Batch.of(torch.zeros(3, 1), torch.tensor([[1.0], [3.0], [99.0]]), weight=[1.0, 1.0, 0.0])
    meter = PooledMeter(objectives.mse)
    meter.add(torch.tensor([[1.0], [2.0], [torch.nan]]), batch)
    assert meter.result()[0].rmse.mean == pytest.approx(0.5**0.5)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """In 400 simulations of 60 tasks; the truth is that of very many tasks: rmse 0.5, R² 1 − 0.25 / 5."""
    hits = np.zeros(2)
    for seed in range(400):
        (found,) = meter_of(objectives.mse, *simulated(60, 1000 + seed)).result()
        hits += [found.rmse.low <= 0.5 <= found.rmse.high, found.r2.low <= 0.95 <= found.r2.high]
    assert hits.min() >= 0.92 * 400
    assert hits.max() <= 0.985 * 400
