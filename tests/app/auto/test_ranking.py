"""What experience expects of plans."""

import math

import numpy as np
import pytest

from kshot.app.auto.descriptors import describe_simple, error_of, noise_of
from kshot.app.auto.ranking import PAIRED, PRIOR, SPREAD, Expectation, expect, gain_after
from kshot.deciding.experience import Cost, Figure, Trial
from kshot.evaluation.intervals import Interval
from kshot.evaluation.target import Target

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


def test_the_spread_of_gains_is_shrunken_to_that_of_all_plans():
    found = expect(["a", "b"], CLASSES, [trial("a", 0.9), trial("a", 0.95)])
    gains = np.log([0.2 / 0.1, 0.2 / 0.05])
    squares = PRIOR * SPREAD**2 + ((gains - found["a"].gain) ** 2).sum()
    assert found["a"].spread == pytest.approx(math.sqrt(squares / (PRIOR + 2)))
    assert found["b"].spread == SPREAD


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_a_measured_gain_is_moved_to_the_expected_one_as_by_integration(noise):
    expected, measured = Expectation(-0.25, 3.0, None, spread=0.2), 0.1
    gain = np.linspace(-3, 3, 60_001)
    density = np.exp(-0.5 * ((gain - expected.gain) / expected.spread) ** 2)
    if noise:
        density *= np.exp(-0.5 * ((measured - gain) / (PAIRED * noise)) ** 2)
    mean = (gain * density).sum() / density.sum() if noise else measured
    assert gain_after(expected, measured, noise) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(("target", "mean"), [(ACCURACY, 0.8), (MSE, 3.0), (Target("log_likelihood", True, 0.0), -2.0)])
def test_the_noise_of_an_error_is_that_of_its_figure_to_first_order(target, mean):
    step = 1e-6
    slope = abs(error_of(mean + step, target) - error_of(mean - step, target)) / (2 * step)
    assert noise_of(Interval(mean, 0.06, 100), target) == pytest.approx(0.03 * slope, rel=1e-4)
    assert noise_of(Interval(mean, math.nan, 100), target) == 0
    one = noise_of(Interval(mean, math.nan, 100, num_units=1, unit="patient"), target)
    assert gain_after(Expectation(0.2, 5.0, None), 0.9, one) == 0.2, "one patient tells nothing of others"


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
    assert error_of(math.nan, MSE) == error_of(math.inf, MSE) == math.inf
    assert error_of(1.0, ACCURACY) == pytest.approx(math.log(1e-3))
    assert error_of(2e-7, MSE) - error_of(1e-7, MSE) == pytest.approx(math.log(2))  # of small units
    assert math.isfinite(error_of(0.0, MSE))
    said = describe_simple({"a": Interval(0.9, 0.1, 9), "b": Interval(0.8, 0.1, 9)}, ACCURACY)
    assert said == pytest.approx({"simple_error": math.log(0.1), "simple a": 0, "simple b": math.log(2)})
