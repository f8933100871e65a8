"""Intervals and paired differences, against scipy's tests and by what they cover in simulations."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kshot.evaluation import Target
from kshot.evaluation.intervals import BOUNDS, Interval, difference, holm, interval, over_seeds
from kshot.evaluation.units import Units, describe_units, joined


def test_an_interval_is_students():
    values = [0.2, 0.5, 0.9, 0.4]
    found = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=found.mean, scale=stats.sem(values))
    assert (found.mean - found.ci95, found.mean + found.ci95) == pytest.approx((low, high))
    assert math.isnan(interval([1.0]).ci95)


def test_tasks_of_the_same_unit_count_as_one():
    random = np.random.default_rng(0)
    values, units = random.normal(size=24) + np.repeat(random.normal(size=8), 3), np.repeat(np.arange(8), 3)
    order = random.permutation(24)
    plain, alone = interval(list(values)), interval(list(values), Units(np.arange(24)[::-1] + 5))
    assert alone[:4] == pytest.approx(plain[:4])
    assert (plain.num_units, alone.num_units) == (None, 24)
    found, of_means = interval(list(values[order]), Units(units[order])), interval(list(values.reshape(8, 3).mean(1)))
    assert (found.mean, found.ci95, found.num_tasks) == pytest.approx((of_means.mean, of_means.ci95, 24))
    assert found.ci95 > plain.ci95
    other = random.normal(size=24)
    paired = difference([values[order]], [other[order]], Units(units[order]))
    expected = stats.ttest_rel(values.reshape(8, 3).mean(1), other.reshape(8, 3).mean(1))
    assert expected.pvalue - 1e-9 <= paired.p < expected.pvalue + 0.05, "Hall's correction for skewness only adds to it"
    assert math.isnan(interval([0.0, 1.0], Units(np.zeros(2, int))).ci95), "one user tells nothing of others"


def test_intervals_over_units_of_unequal_numbers_of_tasks_cover_the_truth():
    random, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(400):
        units = random.integers(40, size=100)
        values = list(random.normal(size=40)[units] + 0.3 * random.normal(size=100))
        found, plain = interval(values, Units(units)), interval(values)
        hits += found.low < 0 < found.high
        naive += plain.low < 0 < plain.high
    assert 0.92 < hits / 400 < 0.98
    assert naive / 400 < 0.85


def test_a_task_that_diverged_makes_the_figure_infinite_and_its_interval_nan():
    found = interval([1.0, math.inf, 2.0])
    assert math.isinf(found.mean)
    assert math.isnan(found.ci95)
    assert math.isnan(difference([[1.0, math.inf]], [[1.0, 1.0]]).p)


def test_seeds_are_pooled_with_both_intervals():
    random = np.random.default_rng(0)
    scores = random.normal(0.9, 0.05, (4, 50)) + random.normal(0, 0.02, (4, 1))
    found = over_seeds([interval(list(own)) for own in scores])
    of_means = interval(list(scores.mean(1)))
    assert (found.mean, found.ci95) == pytest.approx((of_means.mean, of_means.ci95))
    assert found.ci95_tasks == pytest.approx(np.sqrt(np.mean([interval(list(own)).ci95 ** 2 for own in scores])))
    assert (found.num_seeds, found.num_tasks) == (4, 50)
    one = over_seeds([Interval(0.5, 0.1, 20)])
    assert math.isnan(one.ci95)
    assert one.ci95_tasks == pytest.approx(0.1)


@pytest.mark.parametrize("tasks", [(), (10, 20)])
def test_seeds_of_other_tasks_are_not_pooled(tasks):
    with pytest.raises(ValueError, match="over the same tasks"):
        over_seeds([Interval(0.5, 0.1, count) for count in tasks])


def test_one_seed_each_is_the_paired_t_test():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 30))
    found, expected = difference([ours], [theirs]), stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval()
    middle = found.mean + found.shift
    assert expected.pvalue - 1e-9 <= found.p < expected.pvalue + 0.05
    assert middle - found.ci95 <= low + 1e-12
    assert middle + found.ci95 >= high - 1e-12
    assert found.ci95 < 1.2 * (high - low) / 2
    assert found.num_seeds == (1, 1)


def test_where_all_tasks_differ_alike_only_the_seeds_count_by_welchs_test():
    ours, theirs = np.array([0.9, 0.93, 0.91]), np.array([0.8, 0.84])
    tasks = np.linspace(-0.1, 0.1, 7)
    found = difference(ours[:, None] + tasks, theirs[:, None] + tasks)
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = expected.confidence_interval()
    assert found.p == pytest.approx(max(expected.pvalue, 2 ** (1 - 7)))  # as a test by signs of 7 tasks
    assert (found.mean - found.ci95, found.mean + found.ci95) == pytest.approx((low, high))
    assert found.num_seeds == (3, 2)


def test_equal_scores_do_not_differ_and_a_constant_gain_does():
    same, gain = difference([[0.5, 0.7]], [[0.5, 0.7]]), difference([[0.75, 0.5]], [[0.5, 0.25]])
    assert (same.mean, same.p, gain.mean, gain.p) == (0.0, 1.0, 0.25, 0.5), "2 tasks never show a difference"
    assert math.isnan(same.ci95)
    assert math.isnan(gain.ci95)
    assert difference([[0.75] * 20], [[0.5] * 20]).p == pytest.approx(2**-19)
    assert math.isnan(difference([[0.5]], [[0.4]]).ci95)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([[1.0]], [[1.0, 2.0]]), ([], [[1.0]]), ([1.0, 2.0], [1.0, 2.0]), ([[]], [[]])]
)
def test_scores_that_do_not_belong_together_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="the same number of tasks"):
        difference(ours, theirs)


@pytest.mark.parametrize(("spread", "seeds"), [(0.0, 1), (0.0, 3), (0.03, 3), (0.1, 5)])
def test_the_interval_of_a_difference_covers_the_truth(spread, seeds):
    """Tasks that are hard for both, seeds that are better or worse on all of them, and noise: 95 % must hold 0.1."""
    random = np.random.default_rng(1)
    held = []
    for _ in range(400):
        hard = random.normal(0, 0.2, 40)
        ours, theirs = (
            gain + hard + spread * random.normal(size=(seeds, 1)) + 0.05 * random.normal(size=(seeds, 40))
            for gain in (0.1, 0.0)
        )
        found = difference(ours, theirs)
        held.append(abs(found.mean - 0.1) <= found.ci95)
    assert np.mean(held) >= 0.925  # 0.95 less 2.3 standard errors; wider is allowed, the noise is counted twice


def test_holm_bounds_the_chance_of_any_false_claim():
    random = np.random.default_rng(0)
    false = np.mean([min(holm(list(random.random(6)))) < 0.05 for _ in range(2000)])
    assert false == pytest.approx(0.05, abs=0.015)
    assert np.mean([random.random(6).min() < 0.05 for _ in range(2000)]) > 0.2  # what it is for


def test_holm_keeps_the_order_and_leaves_nan_out():
    assert holm([0.02, math.nan, 0.01, 0.9])[::2] == pytest.approx([0.04, 0.03])
    assert math.isnan(holm([0.02, math.nan])[1])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.7] * 50])
def test_equal_values_have_no_interval_unless_the_metric_is_bounded(values):
    assert math.isnan(interval(values).ci95)
    bounded = interval(values, bounds=(0.0, 1.0))
    share = 1 - 0.025 ** (1 / len(values))  # the share of other tasks that would go unseen once in 40 times
    assert bounded.low == pytest.approx(values[0] * (1 - share))
    assert bounded.high == pytest.approx(values[0] + share * (1 - values[0]))
    assert not Target.parse("accuracy >= 0.9").met(interval(values))
    assert not Target.parse("accuracy >= 0.95").met(bounded)


def test_no_interval_goes_beyond_what_a_metric_can_be():
    values = [0.1, 0.1, 0.2, 3.0]
    plain, found = interval(values), interval(values, bounds=BOUNDS["mse"])
    assert plain.low < 0 == found.low
    assert found.high == pytest.approx(plain.high)
    assert "(0.0000 to" in str(found)
    assert math.isnan(interval([0.7, 0.7], bounds=BOUNDS["mse"]).ci95), "an error has no largest value"
    assert interval([0.9, 1.0, 1.0], bounds=BOUNDS["ndcg_10"]).high == 1
    assert interval([-1.0, 2.0, -3.0], bounds=BOUNDS["mae"]).low == pytest.approx(-2 / 3), "of another metric named so"


def test_600_tasks_of_6_patients_are_6():
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(6), 100)
    values = random.normal(size=6)[patient] + 0.1 * random.normal(size=600)
    found, plain = interval(list(values), Units(patient, "patient")), interval(list(values))
    assert found.sample == "600 tasks of 6 patients"
    assert found.ci95 > 8 * plain.ci95


def test_classes_of_few_class_splits_are_units_by_the_variance_components():
    """Against the variance of the mean over many draws of the classes, of which each test split is one."""
    random, means, variances = np.random.default_rng(0), [], []
    for _ in range(300):
        tasks = random.random((200, 9)).argsort(1)[:, :5]
        effect = random.normal(size=9)
        values = effect[tasks].mean(1) + 0.5 * random.normal(size=200)
        found = interval(list(values), Units(tasks, "class"))
        means.append(found.mean)
        variances.append((found.ci95 / stats.t.ppf(0.975, 8)) ** 2)
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.25)
    assert found.sample == "200 tasks of 9 classes"


def test_tasks_that_all_have_the_same_classes_are_tasks_of_these_classes():
    values = list(np.random.default_rng(0).normal(size=40))
    found = interval(values, Units(np.tile(np.arange(5), (40, 1))))
    assert found.ci95 == pytest.approx(stats.t.ppf(0.975, 39) * np.std(values, ddof=1) / np.sqrt(40), rel=1e-6)


def test_a_side_with_one_seed_is_given_the_variance_of_the_other():
    random, claims = np.random.default_rng(0), 0
    for _ in range(400):
        hard = random.normal(size=60)
        sides = [
            hard + 0.3 * random.normal(size=(count, 1)) + 0.2 * random.normal(size=(count, 60)) for count in (3, 1)
        ]
        claims += difference(*sides).p < 0.05
    assert claims / 400 < 0.08, "17 to 20 % where the single seed counts for nothing"


def test_units_of_folds_are_joined_without_mixing_them():
    one, other = Units(np.array([0, 1, 0]), "school", ["a", "b"]), Units(np.array([0, 0]), "school", ["c"])
    both = joined([one, other])
    assert both.numbers.tolist() == [0, 1, 0, 2, 2]
    assert both.of_task(3) == ["c"]
    wide = joined([Units(np.array([[0, 1], [1, -1]]), "class", ["x", "y"]), Units(np.array([[0, 1, 2]]), "class")])
    assert wide.numbers.tolist() == [[0, 1, -1], [1, -1, -1], [2, 3, 4]]


def test_figures_are_written_with_digits_that_say_something():
    assert str(Interval(0.95312, 0.0041, 600, num_units=20, unit="city")) == "0.9531 ± 0.0041 (600 tasks of 20 cities)"
    assert (
        str(Interval(1.2345e-5, 6.7e-6, 100, num_units=2, unit="day"))
        == "0.00001234 ± 0.00000670 (100 tasks of 2 days)"
    )
    assert str(Interval(0.0, 0.0, 1)) == "0.0000 ± 0.0000 (1 task)"
    assert str(Interval(1e-30, 0.0, 1)) == "0.000000000000 ± 0.000000000000 (1 task)"
    assert str(Interval(0.002, 0.5, 9)) == "0.0020 ± 0.5000 (9 tasks)"


def test_a_report_says_whether_each_task_has_all_units():
    assert describe_units(None) == {}
    assert describe_units(Units(np.array([0, 1, 0]), "school")) == {"unit": "school", "test_units": 2}
    some = Units(np.array([[0, 1], [1, 2], [0, -1]]), "class")
    assert describe_units(some) == {"unit": "class", "test_units": 3}
    every = Units(np.array([[0, 1], [1, 0]]), "class")
    assert describe_units(every) == {"unit": "class", "test_units": 2, "same_units_in_all_tasks": True}
    assert describe_units(joined([every, every])) == {"unit": "class", "test_units": 4}


@pytest.mark.parametrize("number", [3, 4, 10, 12, 16, 18, 21])
def test_simulated_coverage_holds(number):
    """A short version of `benchmarks/coverage.py`."""
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    situation = module.SITUATIONS[number]
    found = module.share(situation.ours, 300, number)
    assert found > 0.895, situation.name
    assert found < 0.99 or situation.exact, situation.name
