"""The selector of plans against closed forms and scikit-learn's trees; schedules by its weights; ASlib."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from sklearn.ensemble import ExtraTreesRegressor

from kshot.learners.choosing.selector import Selector, _folds, _Forest, _quantiles, _ranks

ROOT = Path(__file__).parents[2]
ASLIB = ROOT.parent / "shared" / "data" / "aslib"


@pytest.fixture
def selection(monkeypatch):
    spec = importlib.util.spec_from_file_location("selection", ROOT / "benchmarks" / "selection.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "selection", module)
    spec.loader.exec_module(module)
    return module


def instances(n=120, seed=0):
    """Plan 0 is right where feature 1 is positive, plan 1 elsewhere; plan 2 is in between, best on average."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    right = x[:, 1] > 0
    losses = np.stack([np.where(right, 0.0, 1.0), np.where(right, 1.0, 0.0), np.full(n, 0.3)], axis=1)
    return x, losses + 0.05 * rng.normal(size=losses.shape)


def test_a_feature_that_decides_is_found():
    x, losses = instances()
    new, truth = instances(seed=1)
    selector = Selector(trees=60).fit(x, losses)
    clear = np.abs(new[:, 1]) > 0.3
    assert (selector.choose(new)[clear] == truth.argmin(1)[clear]).mean() > 0.97
    weights = selector.weights(new)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights.argmax(1) == selector.expected(new).argmin(1)).all()
    assert (weights * truth).sum(1).mean() < 0.2  # 0.3 of the best single plan, 0 of the best plan of each


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_features_and_losses_do_not_matter(scale):
    x, losses = instances()
    plain, scaled = Selector(trees=20).fit(x, losses), Selector(trees=20).fit(np.exp(x) * scale, losses * scale)
    assert (plain.choose(x[:40]) == scaled.choose(np.exp(x[:40]) * scale)).all()
    np.testing.assert_allclose(plain.weights(x[:40]), scaled.weights(np.exp(x[:40]) * scale), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_of_noise_the_best_single_plan_is_made(seed):
    rng = np.random.default_rng(seed)
    x, losses = rng.normal(size=(80, 5)), rng.normal(np.where(np.arange(6) == 2, 0.0, 0.4), size=(80, 6))
    selector = Selector(trees=40).fit(x, losses)
    assert (selector.choose(rng.normal(size=(30, 5))) == 2).mean() > 0.9


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_instances_give_the_best_single_plan(n):
    x, losses = instances(n)
    expected = Selector(trees=10).fit(x, losses).expected(x)
    assert np.isfinite(expected).all()
    if n == 1:
        np.testing.assert_allclose(expected, losses)


def test_one_group_gives_the_best_single_plan_and_groups_stay_together():
    x, losses = instances()
    selector = Selector(trees=10).fit(x, losses, np.zeros(len(x)))
    np.testing.assert_allclose(selector.expected(x[:3]), np.tile(losses.mean(0), (3, 1)))
    groups = np.repeat(np.arange(13), [30, 9, 1, 1, 1, 2, 2, 3, 3, 1, 1, 5, 1])
    fold = _folds(len(groups), groups, 5, seed=0)
    assert all(len(set(fold[groups == group])) == 1 for group in range(13))
    assert sorted(np.bincount(fold))[:4] == [7, 7, 7, 9]  # beside the fold that the group of 30 fills


def test_groups_decide_whether_a_feature_that_names_them_is_believed():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 4)
    x = groups[:, None] + 0.01 * rng.normal(size=(96, 1))
    losses = rng.normal(size=(24, 3))[groups] + 0.01 * rng.normal(size=(96, 3))
    held_out = Selector(trees=40).fit(x, losses, groups).neighbours(x[:1])
    by_row = Selector(trees=40).fit(x, losses).neighbours(x[:1])
    assert by_row[0, :4].sum() > 0.7 > 0.5 > held_out[0, :4].sum()


def test_unknown_features():
    x, losses = instances()
    x[::3, 0], x[::7, 2], x[5, 3] = np.nan, np.inf, -np.inf
    selector = Selector(trees=40).fit(np.column_stack([x, np.full(len(x), np.nan)]), losses)
    new = np.array([[np.nan, 2.0, np.nan, np.inf, 1.0], [0.0, -2.0, 0.0, 0.0, np.nan]])
    assert selector.choose(new).tolist() == [0, 1]
    assert Selector(trees=40).fit(np.zeros((len(x), 0)), losses).choose(np.zeros((2, 0))).tolist() == [2, 2]


def test_what_is_unknown_is_a_feature():
    x, losses = instances()
    hidden = np.where(x[:, :1] > 0, np.nan, 0.0)
    losses[:, 0], losses[:, 1] = np.isnan(hidden[:, 0]), 1 - np.isnan(hidden[:, 0])
    assert Selector(trees=40).fit(hidden, losses).choose([[np.nan], [0.0]]).tolist() == [1, 0]


def test_arrays_give_bitwise_the_same_predictions(tmp_path):
    x, losses = instances()
    selector = Selector(trees=30, leaf_sizes=(2,)).fit(x, losses)
    safetensors.numpy.save_file(selector.to_arrays(), tmp_path / "selector.safetensors")
    again = Selector.from_arrays(safetensors.numpy.load_file(tmp_path / "selector.safetensors"))
    for name in ("expected", "weights", "choose", "neighbours"):
        assert np.array_equal(getattr(selector, name)(x), getattr(again, name)(x))


@pytest.mark.parametrize("leaf", [1, 4])
def test_trees_are_those_of_scikit_learn(leaf):
    x, losses = instances()
    x[::4, 2] = np.nan
    new, _ = instances(seed=1)
    forest = _Forest.grow(x, [losses, losses[:, :1]], leaf=leaf, trees=8, seed=3)
    options = {"min_samples_leaf": leaf, "max_features": "sqrt", "random_state": 3}
    grid = _quantiles(x)
    ranks, new_ranks = _ranks(grid, x), _ranks(grid, new)
    both = ExtraTreesRegressor(8, **options).fit(ranks, losses)
    one = ExtraTreesRegressor(8, **options).fit(ranks, losses[:, 0])
    leaves = np.hstack([both.apply(new_ranks), one.apply(new_ranks)])
    assert np.array_equal(forest.apply(new) - forest.roots, leaves)
    alone = _Forest.grow(x, [losses], leaf=leaf, trees=8, seed=3)
    np.testing.assert_allclose(alone.weights(new) @ losses, both.predict(new_ranks), atol=1e-12)
    single = np.hstack([both.predict(new_ranks)[:, :1], one.predict(new_ranks)[:, None]]).mean(1)
    np.testing.assert_allclose(forest.weights(new) @ losses[:, 0], single, atol=1e-12)


def test_shrinkage_is_that_of_the_formula():
    x, losses = instances()
    near = Selector(trees=10, leaf_sizes=(3,), shrinkages=(0.0,)).fit(x, losses).neighbours(x[:9])
    half = Selector(trees=10, leaf_sizes=(3,), shrinkages=(0.25,)).fit(x, losses)
    np.testing.assert_allclose(half.neighbours(x[:9]), 0.75 * near + 0.25 / len(x))
    np.testing.assert_allclose(half.expected(x[:9]), 0.75 * near @ losses + 0.25 * losses.mean(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]], [0.5]), r"features must be \(n, d\) and losses \(n, p\)"),
        (([[1.0], [2.0]], [[0.5]]), r"got \(2, 1\) and \(1, 1\)"),
        (([[1.0]], [[np.nan]]), "losses must be finite, got 1 that are not"),
        (([[1.0]], [[0.5]], [1, 2]), "groups must name the group of each of the 1 instances, got 2"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Selector().fit(*arguments)


def test_other_features_than_those_fitted_are_an_error():
    x, losses = instances(10)
    with pytest.raises(ValueError, match=r"features must be \(m, 4\) as in fit, got \(10, 3\)"):
        Selector(trees=5).fit(x, losses).choose(x[:, :3])


def test_a_schedule_runs_what_solves_most_for_its_time_and_then_the_best_of_the_rest(selection):
    # Algorithm 0 solves half of the instances at once, and those only; algorithm 1 solves the others, slowly.
    earlier = np.array([[0.001, 0.9], [0.001, np.inf], [np.inf, 0.5], [np.inf, 0.6]])
    times = selection.Times(earlier, smoothing=0.0)
    weights = times.copied(np.full((2, 4), 0.25))
    assert times.schedules(weights, np.array([0.0, 0.0]), 1)[0] == [(1, 1.0)]
    first, _ = times.schedules(weights, np.zeros(2), 2)
    assert [j for j, _ in first] == [0, 1]
    assert first[0][1] == pytest.approx(0.001)
    assert selection.run(first, earlier[1], 0.0) == (0.001, True)
    assert selection.run(first, earlier[2], 0.0) == (pytest.approx(0.501), True)
    assert selection.run(first, earlier[3], 0.5)[1] is False
    assert times.schedules(weights, np.array([1.0, 0.0]), 2)[0] == []


def test_features_are_paid_for_and_presolved_instances_solved(selection):
    values = np.array([[0.2, 0.8], [0.95, np.inf], [np.inf, 0.3], [np.inf, np.inf]])
    cost, presolved = np.array([0.1, 0.1, 0.4, 0.1]), np.array([False, False, False, True])
    scenario = selection.Scenario("s", True, values, np.zeros((4, 1)), cost, presolved, np.arange(4))
    near = np.tile([[0.0, 1.0, 0.0, 0.0]], (4, 1))  # of instance 1, which algorithm 0 alone solves
    table = selection.Times(values, 0.0)
    policy = selection.Policy(smoothing=0.0, runs=1, before=0.0, features=1.0, shrinkage=0.0)
    paid = selection.losses_of(policy, scenario, scenario, near, table)
    np.testing.assert_allclose(paid, [0.3, 10, 10, 0.1])  # the second exceeds the limit with its features
    without = selection.losses_of(policy._replace(features=0.0, shrinkage=1.0), scenario, scenario, near, table)
    np.testing.assert_allclose(without, [0.8, 10, 0.3, 10])  # algorithm 1 solves as many, and sooner


def test_arff(selection, tmp_path):
    (tmp_path / "a.arff").write_text("@RELATION r\n@ATTRIBUTE i STRING\n@DATA\n% a remark\n'x/1',1,?\n\"y,2\",1,3.5\n")
    assert list(selection.arff(tmp_path / "a.arff")) == [["x/1", "1", "nan"], ["y,2", "1", "3.5"]]


@pytest.mark.skipif(not ASLIB.exists(), reason="ASlib is not beside the repository")
def test_aslib_scenarios_are_read_as_published(selection):
    csp = selection.read_scenario(ASLIB / "CSP-Minizinc-Time-2016")
    assert (csp.values.shape, csp.features.shape, csp.timed) == ((100, 20), (100, 95), True)
    assert 1200 * csp.losses.mean(0).min() == pytest.approx(3372.45099)  # single best, virtual best; as in its tables
    assert 1200 * csp.losses.min(1).mean() == pytest.approx(2061.80244)
    weka = selection.read_scenario(ASLIB / "OPENML-WEKA-2017")
    assert (weka.timed, weka.cost.sum()) == (False, 0)
    assert 1 - weka.losses.mean(0).min() == pytest.approx(0.8556731)
    assert sorted(np.unique(weka.fold)) == list(range(1, 11))
    half = csp.fold <= 5
    earlier, new = csp.part(half), csp.part(~half)
    near = selection.near_weights(earlier, new, seed=0, trees=60)
    policy = selection.Policy(smoothing=0.5, runs=1, before=0.0, features=1.0, shrinkage=0.0)
    lost = selection.losses_of(policy, earlier, new, near, selection.Times(earlier.values, 0.5))
    assert lost.mean() < new.losses[:, earlier.losses.mean(0).argmin()].mean()
