"""What a forecaster would use for a single series, or for many: naive methods, ETS, Theta, global ridge and boosting.

Each predicts from all that a task shows of the past: the history that its support windows make, and a query's context.

Shape legend: n support windows, M queries, R rows of either, C context steps, H steps ahead, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.inner.precision import widest_float
from kshot.learner import Learner
from kshot.learners.series import classical
from kshot.learners.series.ensemble import LONGER_SEASONS, scale_of
from kshot.learners.series.ets import ets
from kshot.learners.series.history import Past, history_of, past_of_queries, past_of_windows
from kshot.objectives import Objective
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource, draw
from kshot.types import Batch, Tree

Method = Callable[[Past, int], Tensor]
"""Past (R, P) and number of steps ahead -> forecasts (R, H)."""

L2 = (1e-3, 0.1, 1.0, 10.0)
"""Penalties of the global ridge, per training window."""
SUPPORT_WEIGHTS = (0.0, 10.0)
"""Weights of a support window against a training window in the global ridge."""
ITERATIONS = (50, 200)
"""Trees of the global boosting, at a learning rate of 0.1."""
MAX_WINDOWS = 50_000
MAX_BOOSTED = 100_000
"""Rows of the global boosting, one for each step ahead of a training window."""
LARGEST = 20.0
"""Scaled values beyond which a training window counts less, so that series that hardly move do not decide."""
MOMENTS = (("mean", 0.0), ("std", 1.0))
"""Attributes of a preprocessor that scaled all series alike, and what stands for them where it did not."""


class _Forecaster(Learner):
    """Forecasts from the past of a task; a distribution has the standard deviation of the errors on the support set."""

    ordered = True

    def __init__(self, objective: Objective, horizon: int, stride: int) -> None:
        super().__init__(objective)
        self.horizon, self.stride = horizon, stride

    @abstractmethod
    def forecast(self, state: Tree, past: Past, inputs: Tensor) -> Tensor:
        """Forecasts (R, H) from what precedes them."""

    def fitted(self, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tree:
        """What else is fitted to the support set."""
        return {}

    def _adapt(self, support: Batch) -> Tree:
        wide = widest_float(support.weight.device)
        weight = (support.weight > 0).to(wide)
        inputs = torch.where(weight[:, None, None] > 0, _finite(support.inputs.to(wide)), 0.0)
        targets = torch.where(weight[:, None] > 0, support.targets.to(wide), 0.0)
        state = history_of(inputs, targets, weight, self.stride) | self.fitted(inputs, targets, weight)
        if self.objective.predicts != "distribution":
            return state
        past = past_of_windows(state, inputs, weight, self.stride)
        error = (self.forecast(state, past, inputs) - targets).square()
        return state | {"std": (weight @ error / weight.sum().clamp_min(1)).clamp_min(1e-4).sqrt()}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        wide = _finite(inputs.to(state["values"].dtype))
        mean = self.forecast(state, past_of_queries(state, wide), wide).to(inputs.dtype)
        if self.objective.predicts != "distribution":
            return mean
        return {"mean": mean, "std": state["std"].to(inputs.dtype).expand_as(mean)}


class ClassicalForecaster(_Forecaster):
    """A forecast of each series from its own past.

    Args:
        objective: of values or of a distribution.
        method: the forecast.
        horizon: steps ahead.
        stride: steps between the starts of support windows.
        logarithm: forecast the logarithm, where all known values are positive, so that seasons and errors are relative.
        center, spread: values of the tasks are those of the data minus the center, divided by the spread; they are
            used for the logarithm.

    Example:
        >>> from kshot import objectives
        >>> learner = ClassicalForecaster(objectives.forecast(), classical.last_value, horizon=2, stride=1)
        >>> state = learner.adapt(Batch.of(torch.ones(1, 3, 1), torch.ones(1, 2)))
        >>> learner.predict(state, torch.tensor([[[1.0], [2.0], [4.0]]]))
        tensor([[4., 4.]])
    """

    def __init__(
        self,
        objective: Objective,
        method: Method,
        *,
        horizon: int,
        stride: int,
        logarithm: bool = False,
        center: float = 0.0,
        spread: float = 1.0,
    ) -> None:
        super().__init__(objective, horizon, stride)
        self.method, self.logarithm, self.center, self.spread = method, logarithm, center, spread

    def forecast(self, state: Tree, past: Past, inputs: Tensor) -> Tensor:
        if not self.logarithm:
            return self.method(past, self.horizon)
        units = past.values * self.spread + self.center
        positive = ((units > 0) | (past.known == 0)).all(1, keepdim=True)
        relative = torch.where(past.known > 0, torch.where(positive, units, 1.0).log(), 0.0)
        ahead = self.method(Past(torch.where(positive, relative, past.values), past.known), self.horizon)
        most = relative.amax(1, keepdim=True) + 5  # a trend that grows without bounds is cut off
        grown = (ahead.minimum(most).exp() - self.center) / self.spread
        return torch.where(positive, grown, ahead)


class GlobalRidge(_Forecaster):
    r"""One ridge regression for all series, on the values of the context, in units of each window's level and scale.

    $$ \hat y = \ell + s \, (\text{seasonal naive}(z) + W^\top [z, 1]), \qquad
       W = (Z^\top Z + \lambda n I)^{-1} Z^\top E, \qquad z = (x - \ell) / s $$

    $\ell$ is the mean of the context's last season, $s$ its mean move over a season, and $E$ the errors of the seasonal
    naive forecast. The rows of $Z$ are the n windows of the training series, and those of the support set.

    Args:
        objective, horizon, stride: as in `ClassicalForecaster`.
        gram, moment: $Z^\top Z$ (D, D) and $Z^\top E$ (D, H) of the training windows.
        count: n.
        season: steps of a season.
        l2: $\lambda$.
        support_weight: weight of a support window.
    """

    gram: Tensor
    moment: Tensor

    def __init__(
        self,
        objective: Objective,
        gram: Tensor,
        moment: Tensor,
        count: float,
        *,
        season: int,
        stride: int,
        l2: float,
        support_weight: float = 0.0,
    ) -> None:
        super().__init__(objective, moment.shape[1], stride)
        self.season, self.support_weight = season, support_weight
        eye = torch.eye(len(gram), dtype=gram.dtype)
        self.register_buffer("gram", gram + (l2 * count + 1e-9) * eye)
        self.register_buffer("moment", moment)

    def fitted(self, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tree:
        feat_nD, error_nH, _ = ridge_rows(inputs, targets, self.season)
        root_n1 = (self.support_weight * weight).sqrt()[:, None] * _less_if_large(feat_nD, error_nH)
        feat_nD, error_nH = root_n1 * feat_nD, root_n1 * error_nH
        gram, moment = self.gram.to(feat_nD.dtype), self.moment.to(feat_nD.dtype)
        return {"weights": torch.linalg.solve(gram + feat_nD.mT @ feat_nD, moment + feat_nD.mT @ error_nH)}

    def forecast(self, state: Tree, past: Past, inputs: Tensor) -> Tensor:
        feat_RD, naive_RH, scale_R = ridge_rows(inputs, None, self.season, self.horizon)
        return naive_RH + scale_R[:, None] * (feat_RD @ state["weights"])


def ridge_rows(
    inputs: Tensor, targets: Tensor | None, season: int, horizon: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (R, D) of windows (R, C, 1 + V), the last one 1; scaled errors of the seasonal naive forecast (R, H), or
    without targets that forecast itself; and the scale (R,)."""
    values = inputs[..., 0]
    past = Past(values, torch.ones_like(values))
    scale_R = scale_of(past, season)
    level_R1 = values[:, -season:].mean(1, keepdim=True)
    scaled = ((values - level_R1) / scale_R[:, None])[..., None]
    feat_RD = F.pad(torch.cat([scaled, inputs[..., 1:]], -1).flatten(1), (0, 1), value=1.0)
    naive_RH = classical.seasonal_naive(past, targets.shape[1] if targets is not None else horizon or 1, season)
    if targets is None:
        return feat_RD, naive_RH, scale_R
    return feat_RD, (targets - naive_RH) / scale_R[:, None], scale_R


class GlobalBoosting(_Forecaster):
    """One model of boosted trees for all series, as LightGBM is used, which predicts each step ahead by itself.

    Its features are those of the ridge, the step, and the seasonal naive forecast of that step; it predicts the scaled
    error of that forecast.

    Args:
        objective, horizon, stride: as in `ClassicalForecaster`.
        model: of scikit-learn, fitted to `boosting_rows`.
        season: steps of a season.
    """

    def __init__(self, objective: Objective, model: Any, *, horizon: int, season: int, stride: int) -> None:
        super().__init__(objective, horizon, stride)
        self.model, self.season = model, season

    def forecast(self, state: Tree, past: Past, inputs: Tensor) -> Tensor:
        feat_RD, naive_RH, scale_R = ridge_rows(inputs, None, self.season, self.horizon)
        rows = boosting_rows(feat_RD, _scaled_naive(inputs, naive_RH, scale_R, self.season))
        error_RH = torch.from_numpy(self.model.predict(rows)).to(naive_RH).reshape(naive_RH.shape)
        return naive_RH + scale_R[:, None] * error_RH


def boosting_rows(feat_RD: Tensor, naive_RH: Tensor) -> np.ndarray:
    """Rows (R H, D + 1): the features of the ridge but the constant, the step ahead, and its scaled naive forecast."""
    num_rows, horizon = naive_RH.shape
    steps = torch.arange(horizon, dtype=feat_RD.dtype).repeat(num_rows)
    lags = feat_RD[:, :-1].cpu().repeat_interleave(horizon, 0)
    return torch.cat([lags, steps[:, None], naive_RH.cpu().reshape(-1, 1)], 1).numpy()


def _scaled_naive(inputs: Tensor, naive_RH: Tensor, scale_R: Tensor, season: int) -> Tensor:
    level_R1 = inputs[..., 0][:, -season:].mean(1, keepdim=True)
    return (naive_RH - level_R1) / scale_R[:, None]


def boosted(source: TaskSource, season: int) -> list[Any]:
    """scikit-learn's histogram boosting of the windows of the training series, for each number of trees."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    batches = training_windows(source)
    share = min(1.0, MAX_BOOSTED / sum(targets.numel() for _, targets in batches))
    rows, errors = [], []
    for inputs, targets in batches:
        count = max(int(share * len(inputs)), 1)
        chosen = torch.linspace(0, len(inputs) - 1, count).long()
        wide, known = _finite(inputs[chosen].double()), targets[chosen].double()
        feat, error, scale = ridge_rows(wide, known, season)
        naive = _scaled_naive(wide, known - scale[:, None] * error, scale, season)
        good = (_less_if_large(feat, error)[:, 0] == 1) & error.isfinite().all(1)
        rows.append(boosting_rows(feat[good], naive[good]))
        errors.append(error[good].reshape(-1).numpy())
    options: dict[str, Any] = {"learning_rate": 0.1, "early_stopping": False, "random_state": 0}
    return [
        HistGradientBoostingRegressor(max_iter=count, **options).fit(np.concatenate(rows), np.concatenate(errors))
        for count in ITERATIONS
    ]


def training_windows(source: TaskSource) -> list[tuple[Tensor, Tensor]]:
    """Batches of the inputs and targets of windows of the training series, at most `MAX_WINDOWS` of them."""
    with during(source, "training"):
        rows = list(source.members("train").values())
        examples = getattr(source, "examples", None)
        if rows and examples is not None:
            all_rows = np.concatenate(rows)
            all_rows = all_rows[np.linspace(0, len(all_rows) - 1, min(len(all_rows), MAX_WINDOWS)).astype(np.int64)]
            return [examples.take(part) for part in np.array_split(all_rows, -(-len(all_rows) // 2048))]
        sets = [each for task in draw(source, "train", range(256)) for each in task]
        return [(each.inputs[each.weight > 0], each.targets[each.weight > 0]) for each in sets]


def training_sums(source: TaskSource, season: int) -> tuple[Tensor, Tensor, float]:
    """$Z^T Z$, $Z^T E$ and the number of the windows of the training series."""
    gram: Tensor | float = 0.0
    moment: Tensor | float = 0.0
    count = 0.0
    for inputs, targets in training_windows(source):
        feat, error, _ = ridge_rows(_finite(inputs.double()), targets.double(), season)
        root = _less_if_large(feat, error)
        feat, error = root * feat, root * error
        gram, moment, count = gram + feat.mT @ feat, moment + feat.mT @ error, count + len(feat)
    assert isinstance(gram, Tensor)
    assert isinstance(moment, Tensor)
    return gram, moment, count


def baselines(source: TaskSource) -> dict[str, Callable[[], list[Learner]]]:
    """The baselines that suit tasks of forecasts, by name; {} for other tasks.

    Each function gives the candidates among which validation tasks choose: one of another season (a week besides a
    day), with and without logarithms where the tasks keep the units of the data, and each penalty of the ridge.

    Example:
        >>> from kshot.sources import sinusoids
        >>> baselines(sinusoids())
        {}
    """
    objective = source.objective
    if not source.forecasts or objective.predicts not in ("values", "distribution"):
        return {}
    with during(source, "training"):
        support = source.task("train", 0).support
    horizon, context = support.targets.shape[1], support.inputs.shape[1]
    about = source.preprocessor
    season = getattr(about, "season", None) or int(getattr(objective.metrics, "season", 1))
    stride = int(getattr(about, "stride", horizon))
    seasons = [each for each in (season, LONGER_SEASONS.get(season, 0)) if 1 <= each < context]
    scale, logarithms = getattr(about, "scale", "support"), [False]
    center, spread = (getattr(about, name)[0] if scale == "global" else default for name, default in MOMENTS)
    if scale in ("global", "level"):
        logarithms.append(True)

    def candidates(methods: list[Method], logarithms: list[bool]) -> list[Learner]:
        options: dict[str, Any] = {"horizon": horizon, "stride": stride}
        return [
            ClassicalForecaster(objective, method, logarithm=logarithm, center=center, spread=spread, **options)
            for method in methods
            for logarithm in logarithms
        ]

    def ridge() -> list[Learner]:
        gram, moment, count = training_sums(source, season)
        options: dict[str, Any] = {"season": season, "stride": stride}
        return [
            GlobalRidge(objective, gram, moment, count, l2=l2, support_weight=weight, **options)
            for l2 in L2
            for weight in SUPPORT_WEIGHTS
        ]

    def boosting() -> list[Learner]:
        options: dict[str, Any] = {"horizon": horizon, "season": season, "stride": stride}
        return [GlobalBoosting(objective, model, **options) for model in boosted(source, season)]

    found: dict[str, Callable[[], list[Learner]]] = {
        "last_value": lambda: candidates([classical.last_value], [False]),
        "drift": lambda: candidates([classical.drift], logarithms),
        "ets": lambda: candidates([partial(ets, season=season)], logarithms),
        "theta": lambda: candidates([partial(seasonal_theta, season=each) for each in seasons], logarithms),
        "global_ridge": ridge,
        "global_boosting": boosting,
    }
    if season > 1:
        naive: list[Method] = [partial(classical.seasonal_naive, season=each) for each in seasons]
        found["seasonal_naive"] = lambda: candidates(naive, [False])
    return found


def seasonal_theta(past: Past, horizon: int, season: int) -> Tensor:
    """Theta of the series without its season, where the test of the season finds one."""
    adjusted, ahead = classical.adjust(past, horizon, season)
    return classical.theta(adjusted, horizon) + ahead


def _less_if_large(feat: Tensor, error: Tensor) -> Tensor:
    """Factors (R, 1) of rows, below 1 for those with values beyond `LARGEST`."""
    most = torch.cat([feat, error], 1).abs().amax(1, keepdim=True)
    return LARGEST / most.clamp_min(LARGEST)


def _finite(inputs: Tensor) -> Tensor:
    """Missing values replaced by 0, the mean of a scaled series."""
    return torch.nan_to_num(inputs, nan=0.0, posinf=0.0, neginf=0.0)
