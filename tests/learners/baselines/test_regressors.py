"""Regressors of a support set: the learner's contract, scikit-learn's values, degenerate support sets, plain tables."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

import kshot
from kshot import Batch, objectives
from kshot.evaluation.baselines import baselines, of_fields
from kshot.learners.baselines import regressors
from kshot.sources.tabular_prior import tabular_priors
from kshot.testing import learner_checks

MAKERS = {
    "ridge": lambda objective=objectives.mse: regressors.ridge(1.0, objective),
    "knn": lambda objective=objectives.mse: regressors.neighbours(3, objective),
    "random_forest": lambda objective=objectives.mse: regressors.forest(10, objective),
    "histogram_boosting": lambda objective=objectives.mse: regressors.boosting(2, objective),
}
CHECKS = [
    pytest.param(check, id=f"{name}: {check_name}")
    for name, make in MAKERS.items()
    for check_name, check in learner_checks(lambda ways, make=make: make())
]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check):
    check()


def rows(count=30, seed=0, outputs=1):
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(count, 4)) * [1, 10, 0.1, 3] + [0, 5, 0, 1]
    targets = inputs @ random.normal(size=(4, outputs)) + 0.3 * random.normal(size=(count, outputs))
    return torch.from_numpy(inputs).float(), torch.from_numpy(targets).float()


def predicted(learner, support, inputs):
    return learner.predict(learner.adapt(support), inputs)


@pytest.mark.parametrize("outputs", [1, 2])
def test_ridge_and_neighbours_are_those_of_scikit_learn(outputs):
    inputs, targets = rows(outputs=outputs)
    queries = rows(9, seed=1)[0]
    mean, std = inputs.double().mean(0), inputs.double().std(0, correction=0)
    train, test = (((part.double() - mean) / std).numpy() for part in (inputs, queries))
    for learner, peer in (
        (regressors.ridge(2.0), Ridge(alpha=2.0)),
        (regressors.neighbours(4), KNeighborsRegressor(4)),
    ):
        expected = peer.fit(train, targets.double().numpy()).predict(test).reshape(9, outputs)
        np.testing.assert_allclose(
            predicted(learner, Batch.of(inputs, targets), queries), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", MAKERS)
def test_odd_support_sets_have_finite_predictions(name):
    inputs, targets = rows(12)
    queries = torch.cat([rows(3, 1)[0], 1e12 * torch.ones(1, 4)])
    cases = {
        "one row": Batch.of(inputs[:1], targets[:1]),
        "no row": Batch.of(inputs[:1], targets[:1], weight=torch.zeros(1)),
        "equal rows": Batch.of(inputs[:1].expand(5, 4), targets[:5]),
        "equal targets": Batch.of(inputs, targets[:1].expand(12, 1)),
        "large": Batch.of(1e12 * inputs, 1e12 * targets),
    }
    for case, support in cases.items():
        for objective in (objectives.mse, objectives.gaussian):
            found = predicted(MAKERS[name](objective), support, queries)
            leaves = found.values() if isinstance(found, dict) else [found]
            assert all(torch.isfinite(leaf).all() and leaf.shape == (4, 1) for leaf in leaves), case
            if case == "equal targets" and objective is objectives.mse:
                torch.testing.assert_close(found, targets[:1].expand(4, 1))
    assert predicted(MAKERS[name](), cases["equal rows"], queries[:0]).shape == (0, 1)


def test_the_standard_deviation_is_that_of_held_out_errors():
    inputs, targets = rows(300)
    learner = regressors.ridge(0.1, objectives.gaussian)
    found = predicted(learner, Batch.of(inputs, targets), rows(5, 1)[0])
    assert found["std"].flatten().tolist() == pytest.approx([0.3] * 5, rel=0.15)


def test_a_row_of_weight_two_is_two_rows():
    inputs, targets = rows(10)
    doubled = Batch.of(torch.cat([inputs, inputs[:3]]), torch.cat([targets, targets[:3]]))
    weighted = Batch.of(inputs, targets, weight=torch.tensor([2.0] * 3 + [1.0] * 7))
    queries = rows(6, 1)[0]
    learner = regressors.ridge(1.0)
    torch.testing.assert_close(predicted(learner, weighted, queries), predicted(learner, doubled, queries))
    single = regressors.neighbours(1)
    torch.testing.assert_close(predicted(single, weighted, inputs), targets)


@pytest.mark.slow
def test_generated_tables_with_numbers_have_them_and_they_beat_the_mean():
    source = tabular_priors(target_type="regression", rows=40, features=(9, 12))
    found = of_fields(source)
    assert set(found) == set(MAKERS)
    mean = kshot.evaluate(kshot.learners.SupportMean(source.objective), source, num_tasks=30, audit=False)
    for name, make in found.items():
        result = kshot.evaluate(make()[-1], source, num_tasks=30, audit=False)
        assert result.metrics["mse"].mean < mean.metrics["mse"].mean, name
        assert math.isfinite(result.metrics["log_likelihood"].mean)


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    random = np.random.default_rng(0)
    area, rooms, town = random.uniform(40, 200, 400), random.integers(1, 7, 400), random.integers(3, size=400)
    price = 2000 * area + 10_000 * rooms + 50_000 * town + random.normal(0, 8000, 400)
    path = tmp_path_factory.mktemp("houses") / "houses.csv"
    lines = [f"{a:.1f},{r},{'ABC'[t]},{p:.0f}" for a, r, t, p in zip(area, rooms, town, price)]
    path.write_text("area,rooms,town,price\n" + "\n".join(lines))
    return path


def test_one_plain_table_with_a_number_to_predict(houses):
    source = kshot.sources.table(houses, target="price", shots=30, queries=10)
    sizes = {split: source.sizes(split) for split in ("train", "val", "test")}
    assert sizes == {"train": {"rows of train": 280}, "val": {"rows of val": 60}, "test": {"rows of test": 60}}
    taken = [set(rows.tolist()) for split in sizes for rows in source.members(split).values()]
    assert len(set.union(*taken)) == 400
    kshot.testing.check_source(source)
    found = of_fields(source)
    assert {*MAKERS, "pooled_ridge", "pooled_boosting", "mixed_model"} <= set(found)
    mean = kshot.evaluate(kshot.learners.SupportMean(source.objective), source, num_tasks=20, audit=False)
    chosen = baselines(source, num_val_tasks=4)
    for name in found:
        result = kshot.evaluate(chosen[name], source, num_tasks=20, audit=False).metrics["mae"].mean
        assert math.isfinite(result), name
        if name != "shrunken_mean":
            assert result < 0.75 * mean.metrics["mae"].mean, name
    assert kshot.evaluate(chosen["ridge"], source, num_tasks=20, audit=False).metrics["mae"].mean < 12_000, (
        "in its unit"
    )


def test_its_units_are_the_rows_that_several_tasks_share(houses):
    source = kshot.sources.table(houses, target="price", shots=4, queries=(2, 5))
    units, names = source.units("test", range(30)), source.unit_names("test")
    for index, own in enumerate(units):
        query = source.task("test", index).query
        real = query.weight > 0
        inputs, targets = source.examples.take(own[own >= 0])
        torch.testing.assert_close((inputs, targets), (query.inputs[real], query.targets[real]))
    assert names[int(units[0, 0])] == f"row {units[0, 0] + 1}"
    found = kshot.evaluate(kshot.learners.SupportMean(source.objective), source, num_tasks=200, audit=False)
    assert 0 < found.metrics["mae"].num_units <= 60
    alone = kshot.evaluation.intervals.interval(found.per_task["mae"])
    assert found.metrics["mae"].ci95 > 1.5 * alone.ci95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either group .* or a target alone"),
        ({"target": "price", "split": {"ratio": [0.5, 0.25, 0.25]}}, "is split by its rows"),
        ({"target": "price", "time": "area"}, "time and domain are for a table with group or classes"),
    ],
)
def test_what_a_plain_table_cannot_have(houses, options, message):
    with pytest.raises(ValueError, match=message):
        kshot.sources.table(houses, **options)
