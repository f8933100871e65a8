"""Forecasts of a series by a weighted mean of classical methods and a global network; the weights are meta-learned.

Shape legend: n support windows, M queries, R rows of either, C context steps, V covariates, H steps ahead, P steps of
the past, F forecasters, m the season.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kshot.annotations import NonNegativeFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.precision import at_least_float32, without_autocast
from kshot.learner import Learner
from kshot.learners.series import classical
from kshot.learners.series.history import Past, history_of, past_of_queries, past_of_windows
from kshot.objectives import Objective, forecast, weighted_mean
from kshot.supplied import FeatureShape, NumOutputs
from kshot.types import Batch, Task, Tree

LONGER_SEASONS = {24: 168, 48: 336, 96: 672}
"""Steps of a day to those of a week, for hours, half hours and quarters of an hour."""
NUM_SEASONS = 3
"""Last seasons of which the seasonal mean is taken."""
LEAST_SCALE = 0.02
"""Least scale of the error of a series, relative to the standard deviation of its past."""


class ForecastEnsemble(Learner):
    """A weighted mean of forecasts, see `forecast_ensemble`, which documents the arguments.

    The state is `{"values": (L,), "known": (L,), "error": (F,), "windows": ()}`: the history of the support set, the
    mean error of each forecaster on its windows in units of the series' scale, and their number.
    """

    ordered = True

    def __init__(
        self,
        context_length: int,
        columns: int,
        horizon: int,
        objective: Objective,
        *,
        season: int,
        stride: int,
        hidden: int,
        member_loss: float,
    ) -> None:
        super().__init__(objective)
        self.season, self.stride, self.horizon, self.member_loss = season, stride, horizon, member_loss
        longer = LONGER_SEASONS.get(season, 0)
        self.longer = longer if longer < context_length else 0
        self.forecasters = [*CLASSICAL, *(LONGER if self.longer else ()), "linear", "network"]
        count, inputs = len(self.forecasters), context_length * columns
        self.linear = nn.Linear(inputs, horizon)
        self.network = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, horizon))
        self.weigh = nn.Sequential(nn.Linear(2 * count + NUM_FEATURES, hidden), nn.GELU(), nn.Linear(hidden, 2 * count))
        self.prior = nn.Parameter(torch.zeros(count, horizon))
        self.sharpness = nn.Parameter(torch.tensor(2.0))
        with torch.no_grad():
            for layer in (
                each for each in (self.linear, self.network[2], self.weigh[2]) if isinstance(each, nn.Linear)
            ):
                layer.weight.zero_()
                layer.bias.zero_()

    def forward(self, task: Task) -> Tensor:
        """The mase of the query after adapting, plus `member_loss` times the mean one of the two global forecasters."""
        state, query = self.adapt(task.support), task.query
        with without_autocast(query.weight.device):
            past = past_of_queries(state, at_least_float32(query.inputs))
            members_RFH, scale_R = self._members(past, query.inputs)
            predictions = [self._combine(state, past, members_RFH, scale_R), members_RFH[:, -2], members_RFH[:, -1]]
        errors = [(each - query.targets).abs().mean(1) for each in predictions]
        scale = weighted_mean(scale_R, query.weight)
        whole, linear, network = (weighted_mean(each, query.weight) / scale for each in errors)
        return whole + self.member_loss * (linear + network) / 2

    def _adapt(self, support: Batch) -> Tree:
        with without_autocast(support.weight.device):
            return self._state_of(support)

    def _state_of(self, support: Batch) -> Tree:
        inputs, targets = at_least_float32(support.inputs), at_least_float32(support.targets)
        weight = (support.weight > 0).to(inputs.dtype)
        inputs = torch.where(weight[:, None, None] > 0, inputs, 0.0)
        targets = torch.where(weight[:, None] > 0, targets, 0.0)
        state = history_of(inputs, targets, weight, self.stride)
        past = past_of_windows(state, inputs, weight, self.stride)
        members_nFH, scale_n = self._members(past, inputs)
        error_nF = (members_nFH - targets[:, None]).abs().mean(2) / scale_n[:, None]
        count = weight.sum()
        return state | {"error": weight @ error_nF / count.clamp_min(1), "windows": count}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        with without_autocast(inputs.device):
            past = past_of_queries(state, at_least_float32(inputs))
            return self._combine(state, past, *self._members(past, inputs))

    def _members(self, past: Past, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The forecasts of each forecaster (R, F, H), and the scale of the error of each row (R,)."""
        scale_R = scale_of(past, self.season)
        forecasts = classical_forecasts(past, self.horizon, self.season, self.longer)
        level_R1 = past.values[:, -self.season :].mean(1, keepdim=True)
        context_RC = (at_least_float32(inputs)[..., 0] - level_R1) / scale_R[:, None]
        scaled = torch.cat([context_RC[..., None], at_least_float32(inputs)[..., 1:]], -1).flatten(1)
        repeated = scaled.unflatten(1, (inputs.shape[1], -1))[:, -self.season :, 0]
        naive = repeated[:, torch.arange(self.horizon, device=scaled.device) % self.season]
        linear = naive + _call(self.linear, scaled)
        global_ones = [linear, linear + _call(self.network, torch.asinh(scaled))]
        return torch.stack([*forecasts, *(level_R1 + scale_R[:, None] * each for each in global_ones)], 1), scale_R

    def _combine(self, state: Tree, past: Past, members_RFH: Tensor, scale_R: Tensor) -> Tensor:
        """The weighted mean of the forecasts, (R, H)."""
        centre_R1H = members_RFH.mean(1, keepdim=True)
        apart_RF = (members_RFH - centre_R1H).abs().mean(2) / scale_R[:, None]
        log_error_F = (state["error"] + 0.01).log()
        log_error_F = log_error_F - log_error_F.mean()
        rows = len(scale_R)
        windows = state["windows"].log1p().expand(rows, 1)
        features = torch.cat(
            [log_error_F.expand(rows, -1), apart_RF.log1p(), features_of(past, self.season, scale_R), windows], 1
        )
        level_RF, slope_RF = _call(self.weigh, features).chunk(2, 1)
        ahead_H = torch.linspace(-1, 1, self.horizon, dtype=level_RF.dtype, device=level_RF.device)
        logit_RFH = level_RF[..., None] + slope_RF[..., None] * ahead_H + self.prior
        logit_RFH = logit_RFH - self.sharpness * log_error_F[:, None] * (state["windows"] > 0)
        return (logit_RFH.softmax(1) * members_RFH).sum(1)


def _call(module: nn.Module, values: Tensor) -> Tensor:
    """The output of a module for values (R, …), in their type, which may be wider than that of its parameters."""
    wide = {name: parameter.to(values.dtype) for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, wide, (values,))


CLASSICAL = ("last_value", "seasonal_naive", "drift", "seasonal_mean", "simple_smoothing", "damped_smoothing", "theta")
LONGER = ("longer_seasonal_naive", "longer_seasonal_mean")
NUM_FEATURES = 7


def classical_forecasts(past: Past, horizon: int, season: int, longer: int = 0) -> list[Tensor]:
    """The forecasts (R, H) of `CLASSICAL`, and of `LONGER` for a longer season; all but the first four are of the past
    without its season, which is added again."""
    adjusted, ahead = classical.adjust(past, horizon, season)
    forecasts = [
        classical.last_value(past, horizon),
        classical.seasonal_naive(past, horizon, season),
        classical.drift(adjusted, horizon) + ahead,
        classical.seasonal_mean(past, horizon, season, NUM_SEASONS),
        classical.simple_smoothing(adjusted, horizon) + ahead,
        classical.damped_smoothing(adjusted, horizon) + ahead,
        classical.theta(adjusted, horizon) + ahead,
    ]
    if longer:
        forecasts.append(classical.seasonal_naive(past, horizon, longer))
        forecasts.append(classical.seasonal_mean(past, horizon, longer, NUM_SEASONS))
    return forecasts


def scale_of(past: Past, season: int) -> Tensor:
    """The mean move over a season of each row, (R,), at least `LEAST_SCALE` standard deviations of its values."""
    values, known = past
    both = known[:, season:] * known[:, :-season]
    moves = ((values[:, season:] - values[:, :-season]).abs() * both).sum(1) / both.sum(1).clamp_min(1)
    mean = (values * known).sum(1) / past.num_known.clamp_min(1)
    variance = ((values - mean[:, None]).square() * known).sum(1) / past.num_known.clamp_min(1)
    return moves.maximum(LEAST_SCALE * variance.clamp_min(0).sqrt()).clamp_min(1e-6)


def features_of(past: Past, season: int, scale_R: Tensor) -> Tensor:
    """Features of each series for the weights of its forecasters, (R, `NUM_FEATURES` - 1)."""
    values, known = past
    correlation = classical.autocorrelations(past, season)
    moves = Past(values.diff(dim=1) * known[:, 1:] * known[:, :-1], known[:, 1:] * known[:, :-1])
    move_correlation = classical.autocorrelations(moves, season)
    _, slope_R = classical.line(past)
    trend = (slope_R * past.num_known / scale_R).clamp(-20, 20)
    step = (moves.values.abs().sum(1) / moves.num_known.clamp_min(1) / scale_R).clamp_min(1e-4).log()
    features = [correlation[:, 1], correlation[:, season], move_correlation[:, 1], move_correlation[:, season]]
    return torch.stack([*features, torch.asinh(trend), step], 1)


@check_arguments
def forecast_ensemble(
    shape: FeatureShape,
    *,
    horizon: NumOutputs,
    season: PositiveInt | None = None,
    stride: PositiveInt | None = None,
    hidden: PositiveInt = 64,
    member_loss: NonNegativeFloat = 0.3,
    objective: Objective | None = None,
) -> ForecastEnsemble:
    r"""Feature-based forecast model averaging, with a global network among the forecasters.

    $$ \hat y_h = \sum_f w_{fh} \hat y_{fh}, \qquad
       w_{\cdot h} = \mathrm{softmax}_f \bigl(g_\theta(z, \log e, h)_f + \pi_{fh} - \kappa \log e_f\bigr) $$

    The forecasters $\hat y_f$ are the last value; the seasonal naive, and the mean of the last three seasons; drift,
    simple and damped exponential smoothing and Theta of the series without its season; for a season of a day also the
    last week, and the mean of three; the seasonal naive forecast plus a linear map of the context, and the same plus a
    perceptron, both in units of the series' own level and scale. $e_f$ is the mean error of forecaster $f$ over the
    support windows, each predicted from what precedes it, and $z$ are features of the past: autocorrelations, trend,
    and how far the forecasts are apart. The maps, $g_\theta$, $\pi$ and $\kappa$ are meta-learned, by the mase of the
    query.

    The past of a query is all that its task shows: the history that the support windows make, and its own context.

    Args:
        shape: (C, 1 + V), context steps and columns of the inputs.
        horizon: steps ahead, the width of the targets.
        season: steps of a season, fewer than C; by default that of the objective.
        stride: steps between the starts of support windows, as in `kshot.sources.series`; by default the horizon. Where
            windows disagree with it, only the last one counts as history.
        hidden: width of the hidden layers.
        member_loss: weight of the loss of the global forecasters alone, in the outer loss.
        objective: predicts values, `objectives.forecast()` by default.

    Raises:
        ValueError: a shape that is no context, a season that is not shorter, an objective of another kind.

    Example:
        >>> learner = forecast_ensemble((6, 1), horizon=2, season=2)
        >>> wave = torch.tensor([[0.0, 1.0] * 4])
        >>> state = learner.adapt(Batch.of(wave[:, :6, None], wave[:, 6:]))
        >>> learner.predict(state, wave[:, :6, None]).shape
        torch.Size([1, 2])

    References:
        Montero-Manso, Athanasopoulos, Hyndman, Talagala: FFORMA: Feature-based forecast model averaging, International
        Journal of Forecasting 36, 2020. Of the forecasters: Hyndman, Athanasopoulos: Forecasting: Principles and
        Practice, 3rd edition, 2021, and Zeng et al.: Are Transformers Effective for Time Series Forecasting?, AAAI
        2023, arXiv:2205.13504 (the linear map).

    Deviations:
        The weights come from a perceptron of few features and the errors on the support windows, differ by step ahead,
        and are trained together with the global forecasters; in the paper they come from boosted trees of 42 features,
        and the forecasters are nine methods fitted to single series, ARIMA among them.
    """
    objective = forecast(season or 1) if objective is None else objective
    sizes = [shape] if isinstance(shape, int) else list(shape)
    if len(sizes) != 2:
        raise ValueError(f"forecast_ensemble takes windows (context, columns) of series; got inputs of {tuple(sizes)}")
    if objective.predicts != "values":
        raise ValueError("forecast_ensemble predicts values; take an objective of values, such as objectives.forecast")
    if season is None:
        season = int(getattr(objective.metrics, "season", 1))
    if season >= sizes[0]:
        raise ValueError(f"the season must be shorter than the context; got {season} of {sizes[0]} steps")
    options: dict[str, Any] = {"season": season, "stride": stride or horizon}
    options |= {"hidden": hidden, "member_loss": member_loss}
    return ForecastEnsemble(sizes[0], sizes[1], horizon, objective, **options)
