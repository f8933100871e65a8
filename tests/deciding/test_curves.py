"""The prediction of validation curves: coverage on synthetic power laws, and the closed form against a plain one."""

import numpy as np
import pytest

from kshot.deciding.curves import DRAWS, EXPONENTS, NOISES, WIDTH, predict, weigh_exponents


def curve(x, c, *, asymptote=0.8, drop=0.4):
    return asymptote - drop * (np.asarray(x) / 100) ** -c


@pytest.mark.parametrize("num_points", [4, 6, 10])
def test_intervals_cover_noisy_power_laws_at_about_their_nominal_rate(num_points):
    random, steps, covered = np.random.default_rng(num_points), 100.0 * np.arange(1, num_points + 1), []
    for _ in range(300):
        c, noise = np.exp(random.uniform(np.log(0.2), np.log(2))), random.choice([0.003, 0.01])
        truth = curve([*steps, 2000.0], c) + noise * random.standard_normal(num_points + 1)
        low, high = np.quantile(predict(steps, truth[:-1], [2000.0], error=0.01)[:, 0], [0.025, 0.975])
        covered.append(low <= truth[-1] <= high)
    assert 0.89 <= np.mean(covered) <= 0.985


@pytest.mark.parametrize("c", [0.2, 0.7, 2.0])
def test_an_exact_power_law_is_continued(c):
    steps = 100.0 * np.arange(1, 13)
    draws = predict(steps, curve(steps, c), [1500.0, 3000.0], error=0.001)
    assert draws.mean(0) == pytest.approx(curve([1500, 3000], c), abs=0.005)
    falling = predict(steps, -curve(steps, c), [3000.0], error=0.001)
    assert falling.mean() == pytest.approx(-curve(3000, c), abs=0.005)


def test_a_constant_curve_stays_constant():
    draws = predict([1, 2, 3, 4], [0.5] * 4, [8], error=0.01)
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
    assert np.isfinite(predict([1, 2, 3, 4], [0.5] * 4, [8], error=0.0)).all()


def test_mean_and_variance_are_those_of_bayesian_linear_regression():
    """By the covariance of the data instead of that of the weights, one exponent and noise after the other."""
    steps, future, error = 100.0 * np.arange(1, 7), np.array([900.0, 2000.0]), 0.02
    values = curve(steps, 0.8) + 0.01 * np.array([1, -1, 0.5, 0.3, -0.7, 0.2])
    prior = (WIDTH * (np.ptp(values) + error * NOISES[-1])) ** 2
    log_weights, means, variances = [], [], []
    for c in EXPONENTS:
        for sigma in error * NOISES:
            phi = np.stack([np.ones(8), (1 - (np.array([*steps, *future]) / steps[-1]) ** -c) / c], 1)
            covariance = prior * phi @ phi.T + sigma**2 * np.eye(8)
            known, cross = covariance[:6, :6], covariance[6:, :6]
            right = np.linalg.solve(known, values - values[-1])
            log_weights.append(-0.5 * (values - values[-1]) @ right - 0.5 * np.linalg.slogdet(known)[1])
            means.append(values[-1] + cross @ right)
            variances.append(np.diag(covariance[6:, 6:] - cross @ np.linalg.solve(known, cross.T)))
    weight = np.exp(np.array(log_weights) - max(log_weights))
    weight /= weight.sum()
    mean = weight @ np.array(means)
    variance = weight @ (np.array(variances) + (np.array(means) - mean) ** 2)
    draws = predict(steps, values, future, error=error)
    assert np.abs(draws.mean(0) - mean).max() < 4 * np.sqrt(variance / DRAWS).max()
    assert draws.std(0) == pytest.approx(np.sqrt(variance), rel=0.08)


def test_earlier_curves_narrow_the_exponent_and_the_interval():
    steps = 10.0 * np.arange(1, 15)
    earlier = [(steps, curve(steps, 0.5, asymptote=a), 0.001) for a in (0.6, 0.9, 1.5)]
    weights = weigh_exponents(earlier)
    assert weights.sum() == pytest.approx(1)
    near = np.abs(EXPONENTS - 0.5) < 0.2
    assert weights[near].sum() == pytest.approx(0.75 + near.mean() / 4, abs=0.02)
    assert weigh_exponents([]) == pytest.approx(1 / len(EXPONENTS))
    few = 100.0 * np.arange(1, 5)
    values = curve(few, 0.5) + 0.005 * np.array([1, -1, 1, -1])
    widths = [np.ptp(np.quantile(predict(few, values, [2000.0], error=0.01, exponents=e), [0.025, 0.975]))
              for e in (None, weights)]  # fmt: skip
    assert widths[1] < 0.8 * widths[0]


def test_a_prediction_is_a_pure_function():
    arguments = [100.0, 200.0, 300.0, 400.0], [0.4, 0.5, 0.55, 0.56], [500.0, 600.0]
    first = predict(*arguments, error=0.01)
    np.random.default_rng().random(3)
    assert (predict(*arguments, error=0.01) == first).all()
