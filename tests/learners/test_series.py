"""Classical forecasts beside statsmodels, and what the past of a task holds."""

import numpy as np
import pytest
import torch

import kshot
from kshot import objectives, testing
from kshot.learners.series import classical, ets
from kshot.learners.series.history import Past, history_of, past_of_queries, past_of_windows

# Eight years of months: a trend, a season, a random walk and noise, rounded.
Y = [20.118, 21.305, 22.318, 22.821, 23.31, 22.664, 21.079, 19.508, 19.272, 17.514, 18.112, 19.99, 19.457, 22.309,
     22.65, 23.277, 22.72, 21.766, 20.735, 18.922, 18.975, 18.735, 19.097, 20.561, 22.243, 23.899, 24.49, 23.964,
     24.171, 22.922, 20.892, 20.27, 18.811, 18.441, 19.0, 20.961, 22.41, 24.453, 25.218, 26.696, 26.196, 25.526,
     22.772, 23.404, 22.04, 21.686, 22.599, 24.391, 26.5, 28.155, 28.689, 29.725, 29.075, 29.215, 26.744, 25.649,
     24.313, 24.39, 24.786, 25.049, 27.411, 28.456, 29.636, 29.383, 30.636, 29.155, 28.114, 27.257, 27.475, 25.579,
     26.165, 26.781, 30.249, 31.299, 33.118, 32.715, 32.649, 31.658, 30.394, 29.212, 27.61, 28.369, 27.276, 28.994,
     30.229, 31.599, 33.799, 34.283, 33.636, 33.623, 31.639, 31.644, 29.997, 29.062, 28.903, 30.729]  # fmt: skip


def past_of(*rows, steps: int = 0) -> Past:
    """Rows of different lengths, the last values of `steps` or more steps."""
    steps = max(steps, *(len(row) for row in rows))
    values = torch.stack(
        [torch.cat([torch.zeros(steps - len(row)).double(), torch.tensor(row, dtype=torch.float64)]) for row in rows]
    )
    known = torch.stack([torch.arange(steps) >= steps - len(row) for row in rows]).double()
    return Past(values, known)


SERIES = past_of(Y, steps=120)


def test_the_season_and_its_test_are_those_of_statsmodels():
    # statsmodels 0.15.0: seasonal_decompose(y, period=12).seasonal[:12], acf(y)[[1, 12]]
    expected = [0.070323, 1.602514, 2.527865, 2.744288, 2.474175, 1.600591, -0.267421, -1.318593, -2.266206, -2.943058]
    expected += [-2.741177, -1.483302]
    assert classical.adjust(SERIES, 12, 12).ahead[0].numpy() == pytest.approx(expected, abs=1e-6)
    correlation = classical.autocorrelations(SERIES, 12)[0]
    assert [float(correlation[1]), float(correlation[12])] == pytest.approx([0.94300617, 0.69605634], abs=1e-8)
    assert bool(classical.is_seasonal(SERIES, 12))
    noise = np.random.default_rng(0).normal(size=(400, 2000))
    found = classical.is_seasonal(Past(torch.from_numpy(noise), torch.ones(400, 2000)), 12).double().mean()
    assert 0.05 < float(found) < 0.15, "a test at 90 % finds a season in 10 % of noise"


def test_smoothing_is_that_of_statsmodels():
    # statsmodels 0.15.0: SimpleExpSmoothing(initial_level=y[0]).fit(0.3), Holt(damped_trend=True, initial_level=y[0],
    # initial_trend=0).fit(0.3, 0.2, damping_trend=0.9): sse and forecasts
    alpha, beta, phi = torch.tensor([[0.3, 0.3], [0.0, 0.2], [1.0, 0.9]], dtype=torch.float64)
    found = classical.smooth(SERIES, alpha, beta, phi)
    assert found.errors[0].tolist() == pytest.approx([426.10856841, 532.91163481], abs=1e-5)
    assert float(found.level[0, 0]) == pytest.approx(30.38700878, abs=1e-7)
    ahead = [float(found.level[0, 1] + found.slope[0, 1] * (0.9 + 0.81 * h)) for h in (0, 1)]
    assert ahead == pytest.approx([30.02017843, 29.816623], abs=1e-6)


def test_theta_is_that_of_statsmodels():
    # statsmodels 0.15.0: ThetaModel(y, period=12, use_test=False, method="additive").fit(use_mle=False).forecast(14)
    expected = [32.255044, 33.859572, 34.857260, 35.146019, 34.948243, 34.146994, 32.351321, 31.372485, 30.497209]
    expected += [29.892695, 30.166912, 31.497124, 33.123086, 34.727613]
    adjusted, ahead = classical.adjust(SERIES, 14, 12)
    found = classical.theta(adjusted, 14) + ahead
    assert found[0].numpy() == pytest.approx(expected, abs=0.01)  # alpha is searched on a grid


def test_ets_finds_the_form_and_the_likelihood_of_statsmodels():
    # statsmodels 0.15.0: ETSModel(y, error="add", …).fit().aicc with estimated initial states; 219.017 is the least
    aicc = {("N", False): 326.965, ("A", False): 320.637, ("Ad", False): 310.275, ("N", True): 225.337}
    aicc |= {("A", True): 219.017, ("Ad", True): 225.661}
    forms = ets.models(12)
    sse, _ = ets.search(SERIES, 3, 12, forms)
    size = torch.tensor([form.num_parameters(12) for form in forms]).double()
    found = ets.aicc(sse, SERIES.num_known[:, None], size, SERIES)[0] + 96 * (np.log(2 * np.pi) + 1)
    assert forms[int(found.argmin())] == ("A", True) == min(aicc, key=aicc.__getitem__)
    for form, value in zip(forms, found):
        # statsmodels counts a seasonal effect more, and optimises the initial states, which gains much without a season
        assert aicc[form] - (3 if form.seasonal else 0.1) < float(value) < aicc[form] + (1 if form.seasonal else 16)
    # its forecasts: 32.3085, 34.1246, 34.9809
    assert ets.ets(SERIES, 3, 12)[0].numpy() == pytest.approx([32.3085, 34.1246, 34.9809], abs=0.3)


def test_ets_recursion_is_that_of_a_loop():
    random = np.random.default_rng(1)
    values, alpha, beta, gamma, phi = random.normal(size=17), 0.3, 0.1, 0.2, 0.9
    level, slope, seasons = 0.4, -0.2, [0.5, -0.1, -0.4]
    states = ets.States(
        *(torch.tensor([[each]], dtype=torch.float64) for each in (level, slope)),
        torch.tensor(seasons, dtype=torch.float64)[:, None, None],
    )
    parameters = [torch.tensor([[each]], dtype=torch.float64) for each in (alpha, beta, gamma, phi)]
    past = Past(torch.from_numpy(values)[None], torch.ones(1, 17).double())
    sse, ahead = ets.recursion(past, 4, states, *parameters)
    expected = 0.0
    for t, y in enumerate(values):
        error = y - (level + phi * slope + seasons[t % 3])
        expected += error**2
        level, slope = level + phi * slope + alpha * error, phi * slope + beta * error
        seasons[t % 3] += gamma * error
    assert float(sse) == pytest.approx(expected)
    forecasts = [level + sum(phi**k for k in range(1, h + 1)) * slope + seasons[(16 + h) % 3] for h in range(1, 5)]
    assert ahead.flatten().tolist() == pytest.approx(forecasts)


def test_naive_forecasts_by_hand():
    past = past_of([1.0, 2.0, 3.0, 4.0, 5.0, 7.0], [5.0])
    assert classical.last_value(past, 2).tolist() == [[7.0, 7.0], [5.0, 5.0]]
    assert classical.seasonal_naive(past, 4, 3).tolist() == [[4.0, 5.0, 7.0, 4.0], [5.0] * 4]
    torch.testing.assert_close(classical.drift(past, 2), torch.tensor([[8.2, 9.4], [5.0, 5.0]]).double())
    torch.testing.assert_close(
        classical.seasonal_mean(past, 3, 3, 2), torch.tensor([[2.5, 3.5, 5.0], [5.0] * 3]).double()
    )


METHODS = {
    "seasonal mean": lambda past: classical.seasonal_mean(past, 5, 4, 3),
    "drift": lambda past: classical.drift(past, 5),
    "theta": lambda past: classical.theta(past, 5),
    "smoothing": lambda past: classical.damped_smoothing(past, 5),
    "adjusted": lambda past: classical.adjust(past, 5, 4).ahead,
    "ets": lambda past: ets.ets(past, 5, 4),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_unknown_has_no_effect_and_the_rest_is_finite(name):
    random = torch.Generator().manual_seed(0)
    long = (torch.randn(40, generator=random).cumsum(0) + torch.arange(40) % 4).tolist()
    rows = [long, long[-9:], [3.0] * 12, [2.0], [0.0] * 40, [1e6 + value for value in long]]
    together = METHODS[name](past_of(*rows))
    assert torch.isfinite(together).all()
    for row, found in zip(rows, together):
        torch.testing.assert_close(METHODS[name](past_of(row, row))[0], found, rtol=1e-6, atol=1e-6)
    if name != "adjusted":
        torch.testing.assert_close(together[2], torch.full((5,), 3.0).double())


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_the_past_is_the_whole_history_and_nothing_else(stride):
    """Value t of the series is t: a past is the run of numbers up to the step before the forecast."""
    context, horizon, shots = 8, 3, 4
    series = torch.arange(100.0).double()
    windows = series.unfold(0, context + horizon, stride)
    support = windows[:shots]
    weight = torch.ones(shots).double()
    history = history_of(support[:, :context, None], support[:, context:], weight, stride)
    end = (shots - 1) * stride + context + horizon
    assert history["values"].tolist() == list(range(end))
    past = past_of_windows(history, support[:, :context, None], weight, stride)
    for number, (values, known) in enumerate(zip(*past)):
        assert values[known > 0].tolist() == list(range(number * stride + context))
    for later in (0, 1, context - 3):
        query = series[end + later - context : end + later][None, :, None]
        values, known = past_of_queries(history, query)
        assert values[known > 0].tolist() == list(range(end + later))
    far = series[80 : 80 + context][None, :, None]
    values, known = past_of_queries(history, far)
    assert values[known > 0].tolist() == far.flatten().tolist(), "a gap of unknown length is not bridged"


def test_windows_that_do_not_join_leave_the_last_one():
    windows = torch.randn(3, 7).double()
    history = history_of(windows[:, :5, None], windows[:, 5:], torch.tensor([1.0, 1.0, 0.0]), 2)
    assert history["values"][history["known"] > 0].tolist() == windows[1].tolist()


@pytest.mark.slow
def test_training_beats_every_forecaster_of_the_mean():
    """Series with a slope, or with a season: no forecaster is the best of both."""

    def make(seed: int) -> kshot.Task:
        random = torch.Generator().manual_seed(seed)
        steps = torch.arange(60)
        slope = torch.randn((), generator=random) * steps
        wave = 3 * torch.randn(4, generator=random)[steps % 4]
        windows = ((slope if seed % 2 else wave) + torch.randn(60, generator=random)).unfold(0, 15, 3)
        rows = kshot.Batch.of(windows[:, :12, None].contiguous(), windows[:, 12:].contiguous())
        return kshot.Task(rows.rows(slice(4)), rows.rows(slice(4, 8)))

    learner = kshot.learners.forecast_ensemble((12, 1), horizon=3, hidden=16, objective=objectives.forecast(4))
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    for step in range(60):
        optimizer.zero_grad()
        sum(learner(make(4 * step + k)) for k in range(4)).backward()
        optimizer.step()
    ours, members = 0.0, torch.zeros(len(learner.forecasters))
    with torch.no_grad():
        for seed in range(1000, 1060):
            task = make(seed)
            state = learner.adapt(task.support)
            past = past_of_queries(state, task.query.inputs)
            forecasts, scale = learner._members(past, task.query.inputs)
            apart = (forecasts - task.query.targets[:, None]).abs().mean(2) / scale[:, None]
            members += apart.mean(0)
            prediction = learner.predict(state, task.query.inputs)
            ours += float(((prediction - task.query.targets).abs().mean(1) / scale).mean())
    assert ours < float(members.min())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shape": 3}, "takes windows"),
        ({"season": 12}, "season must be shorter"),
        ({"objective": objectives.gaussian}, "predicts values"),
    ],
)
def test_options_that_do_not_fit(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kshot.learners.forecast_ensemble(**{"shape": (12, 1), "horizon": 3} | options)


def test_tasks_of_the_checks_are_forecasts():
    task = testing.make_task(objectives.forecast(4))
    assert task.support.inputs.shape == (6, 12, 1)
    assert torch.equal(task.support.inputs[1, :9, 0], task.support.inputs[0, 3:, 0])
    assert torch.equal(task.query.inputs[0, -3:, 0], task.support.targets[-1])
