"""What a task asks of a prediction: a loss to descend, and metrics that a person reads.

An `Objective` is all that a learner knows about the domain.

Shape legend: n examples, C classes, L positions of a window, V symbols of a vocabulary.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.ranking import ndcg, precision, recall
from kshot.types import Batch, Tree


def _themselves(targets: Tree) -> Tree:
    return targets


def _with_unit_spread(targets: Tensor) -> Tree:
    return {"mean": targets, "std": torch.ones_like(targets)}


def _accept_any(targets: Tree) -> None:
    """Accept targets of any form."""


def check_one_hot(targets: Tree) -> None:
    """Raise `ValueError` unless targets are floating point (n, ways), as one-hot or soft labels are."""
    if not isinstance(targets, Tensor) or targets.ndim != 2 or not targets.is_floating_point():
        raise ValueError(
            f"targets must be one-hot (n, ways), got {_describe(targets)}; "
            "pass class ids through one_hot() or Batch.of(..., ways=...)"
        )


def check_numbers(targets: Tree) -> None:
    """Raise `ValueError` unless targets are floating point (n, ...) with at least one axis beside that of the rows."""
    if not isinstance(targets, Tensor) or targets.ndim < 2 or not targets.is_floating_point():
        raise ValueError(
            f"targets of a regression must be floating point (n, ...), such as (n, 1), got {_describe(targets)}"
        )


def check_symbols(targets: Tree) -> None:
    """Raise `ValueError` unless targets are integers (n, L)."""
    if not isinstance(targets, Tensor) or targets.ndim != 2 or targets.is_floating_point():
        raise ValueError(f"targets of next-token tasks must be integers (n, length), got {_describe(targets)}")


def _describe(targets: Tree) -> str:
    """Dtype and shape of targets, as in `int64 (5,)`."""
    if not isinstance(targets, Tensor):
        return type(targets).__name__
    return f"{str(targets.dtype).removeprefix('torch.')} {tuple(targets.shape)}"


class Objective(NamedTuple):
    """Loss and metrics of a kind of task.

    Attributes:
        loss: (prediction, batch) -> (); differentiable, rows of weight 0 have no effect.
        metrics: (prediction, batch) -> {name: ()}; what a person reads, and rows of weight 0 have no effect on.
        task_specific_classes: whether each task has classes of its own. A class without support examples is then none
            of the task's, and learners give it no probability.
        as_prediction: targets -> a prediction of just them, of the form that loss and metrics take.
        check_targets: targets -> None; raises ValueError if shape or dtype do not fit the loss. `Learner.adapt` calls
            it on each support set. It reads no values, so that it works under `vmap` and while tracing.
    """

    loss: Callable[[Tree, Batch], Tensor]
    metrics: Callable[[Tree, Batch], dict[str, Tensor]]
    task_specific_classes: bool = False
    as_prediction: Callable[[Tree], Tree] = _themselves
    check_targets: Callable[[Tree], None] = _accept_any


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    r"""$\sum_i w_i v_i / \sum_i w_i$ of values (n,) under weights (n,); 0 where all weights are."""
    return (values * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def classes_present(support: Batch) -> Tensor:
    """Which classes (C,) of a classification task have support examples; bool."""
    return (support.targets * support.weight[:, None]).sum(0) > 0


def only_present(logits: Tensor, present: Tensor) -> Tensor:
    """The logits (n, C), the lowest finite number where a class is not present: it gets no probability."""
    return torch.where(present, logits, torch.finfo(logits.dtype).min)


def _cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    _check_ways(logits, batch.targets)
    return weighted_mean(-(batch.targets * torch.log_softmax(logits, -1)).sum(-1), batch.weight)


def _accuracy(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    _check_ways(logits, batch.targets)
    hit = (logits.argmax(-1) == batch.targets.argmax(-1)).to(batch.weight.dtype)
    return {"accuracy": weighted_mean(hit, batch.weight)}


def _check_ways(logits: Tensor, targets: Tensor) -> None:
    check_one_hot(targets)
    if logits.shape != targets.shape:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} but the targets are {tuple(targets.shape)} (n, ways): "
            "give its last layer as many outputs as the task has ways"
        )


def _squared_error(prediction: Tensor, batch: Batch) -> Tensor:
    if prediction.shape != batch.targets.shape:
        raise ValueError(
            f"the model predicts {tuple(prediction.shape)} but the targets are {tuple(batch.targets.shape)}; "
            "they must agree, or broadcasting would silently average over the wrong pairs"
        )
    return weighted_mean((prediction - batch.targets).square().flatten(1).mean(1), batch.weight)


mse = Objective(
    _squared_error,
    lambda prediction, batch: {"mse": _squared_error(prediction, batch)},
    check_targets=check_numbers,
)
r"""Regression: $\frac{1}{\sum w} \sum_i w_i \lVert \hat y_i - y_i \rVert^2 / d$; prediction and targets (n, ...)."""

classification = Objective(_cross_entropy, _accuracy, task_specific_classes=True, check_targets=check_one_hot)
r"""Classification, each task with classes of its own:
$-\frac{1}{\sum w} \sum_i w_i \sum_c y_{ic} \log \mathrm{softmax}(\hat y_i)_c$; logits (n, C),
one-hot or soft targets (n, C). Metric: accuracy, in 0 … 1."""

shared_classification = Objective(_cross_entropy, _accuracy, check_targets=check_one_hot)
"""As `classification`, with the same classes in all tasks, such as pass and fail: one may be missing from a support."""


def _symbol_loss(logits: Tensor, batch: Batch) -> Tensor:
    targets = batch.targets
    if targets.ndim != 2 or targets.is_floating_point() or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} and the targets are {targets.dtype} {tuple(targets.shape)}; "
            "next-token tasks need logits (n, length, symbols) for integer targets (n, length)"
        )
    chosen = torch.log_softmax(logits, -1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)  # (n, L)
    counted = (targets >= 0) * batch.weight[:, None]
    return weighted_mean(-chosen.flatten(), counted.flatten())


LOG_2PI = math.log(2 * math.pi)


def _log_density(prediction: Tree, batch: Batch) -> Tensor:
    """The log-likelihood of each row (n,), in nats, a mean over its dimensions."""
    if not isinstance(prediction, dict) or prediction.keys() != {"mean", "std"}:
        got = sorted(prediction) if isinstance(prediction, dict) else type(prediction).__name__
        raise ValueError(
            f'a gaussian prediction is {{"mean": (n, ...), "std": (n, ...)}}, got {got}: '
            "take a learner that tells a spread, such as cnp, or a model that ends in models.Spread"
        )
    mean, std = prediction["mean"], prediction["std"]
    if not mean.shape == std.shape == batch.targets.shape:
        raise ValueError(
            f"the model predicts means {tuple(mean.shape)} and deviations {tuple(std.shape)} "
            f"but the targets are {tuple(batch.targets.shape)}; the three must agree"
        )
    return (-0.5 * (LOG_2PI + ((batch.targets - mean) / std).square()) - std.log()).flatten(1).mean(1)


def _negative_log_likelihood(prediction: Tree, batch: Batch) -> Tensor:
    return -weighted_mean(_log_density(prediction, batch), batch.weight)


def _of_gaussian(prediction: Tree, batch: Batch) -> dict[str, Tensor]:
    likelihood = weighted_mean(_log_density(prediction, batch), batch.weight)
    mean, std = prediction["mean"], prediction["std"]
    error = batch.targets - mean
    z = error / std
    density = (-0.5 * (LOG_2PI + z.square())).exp()
    crps = std * (z * torch.special.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    inside = (z.abs() <= 1.959964).to(z.dtype)
    each = {"mse": error.square(), "crps": crps, "coverage": inside}
    metrics = {name: weighted_mean(values.flatten(1).mean(1), batch.weight) for name, values in each.items()}
    return {"log_likelihood": likelihood} | metrics


gaussian = Objective(
    _negative_log_likelihood, _of_gaussian, as_prediction=_with_unit_spread, check_targets=check_numbers
)
r"""Regression with a spread: $-\frac{1}{\sum w} \sum_i w_i \frac1d \sum_j \log N(y_{ij}; \mu_{ij}, \sigma^2_{ij})$. A
prediction is `{"mean": (n, ...), "std": (n, ...)}`, both of the targets' shape. Metrics: log_likelihood, in nats for
each number predicted; mse of the mean; crps, the continuous ranked probability score, in the targets' unit (lower is
better); coverage, the share of targets within the central 95 % of what was predicted."""


def _surely(symbols: Tensor) -> Tensor:
    """Logits (n, L, V) that put all but nothing on the symbols (n, L)."""
    return SURE * torch.nn.functional.one_hot(symbols.clamp(min=0)).to(torch.get_default_dtype())


SURE = 100.0  # a logit that leaves e^-100 for the others


next_token = Objective(
    _symbol_loss,
    lambda logits, batch: {"bits_per_character": _symbol_loss(logits, batch) / math.log(2)},
    as_prediction=_surely,
    check_targets=check_symbols,
)
r"""Language modelling: $-\sum_{it} m_{it} \log \mathrm{softmax}(\hat y_{it})_{y_{it}} / \sum_{it} m_{it}$ with
$m_{it} = w_i [y_{it} \ge 0]$: a negative target marks a position that is not scored, such as padding. Logits (n, L, V),
integer targets (n, L). Metric: the same in bits, per character where a symbol is one."""


@dataclass(frozen=True)
class _OfTokens:
    """The metrics of `next_token_of`."""

    characters: tuple[int, ...]

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        scored = (batch.targets >= 0) * batch.weight[:, None]
        count = torch.tensor(self.characters, dtype=scored.dtype, device=scored.device)[batch.targets.clamp(min=0)]
        nats = _symbol_loss(prediction, batch) * scored.sum()
        return {"bits_per_character": nats / math.log(2) / (count * scored).sum().clamp_min(1)}


def next_token_of(characters: Sequence[int]) -> Objective:
    r"""`next_token` where symbols stand for several characters, such as tokens: the loss is the same, a symbol's.

    $$ \text{bits per character} = \frac{-\sum_{it} m_{it} \log_2 \mathrm{softmax}(\hat y_{it})_{y_{it}}}
       {\sum_{it} m_{it} c_{y_{it}}} $$

    Args:
        characters: $c$, how many each symbol stands for.

    Example:
        >>> batch = Batch.of(torch.zeros(1, 2), torch.tensor([[0, 1]]))
        >>> float(next_token_of([3, 1]).metrics(torch.zeros(1, 2, 2), batch)["bits_per_character"])
        0.5
    """
    metrics = _OfTokens(tuple(map(int, characters)))
    return Objective(_symbol_loss, metrics, as_prediction=_surely, check_targets=check_symbols)


@dataclass(frozen=True)
class _InUnits:
    """The metrics of `in_units`; a value, so that equal objectives are equal, and a file can name them."""

    scales: tuple[float, ...]
    names: tuple[str, ...]

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        found = {}
        for place, (scale, name) in enumerate(zip(self.scales, self.names)):
            error = scale * (prediction[:, place] - batch.targets[:, place])
            end = "" if len(self.names) == 1 else "_" + re.sub(r"\W", "_", name)
            found[f"mse{end}"] = weighted_mean(error.square(), batch.weight)
            found[f"mae{end}"] = weighted_mean(error.abs(), batch.weight)
        return found


def in_units(scales: Sequence[float], names: Sequence[str]) -> Objective:
    r"""Regression of targets that were divided by a scale each: the loss is `mse` of the scaled, figures are in units.

    $$ \text{mse} = \frac{s^2}{\sum w} \sum_i w_i (\hat y_i - y_i)^2, \qquad
       \text{mae} = \frac{s}{\sum w} \sum_i w_i \lvert \hat y_i - y_i \rvert $$

    Args:
        scales: $s$ of each target, in its own units.
        names: of the targets; with several, a metric is told for each, as in `mse_price`.

    Example:
        >>> batch = Batch.of(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
        >>> metrics = in_units([10.0], ["price"]).metrics(torch.zeros(2, 1), batch)
        >>> {name: float(value) for name, value in metrics.items()}
        {'mse': 200.0, 'mae': 10.0}
    """
    return Objective(_squared_error, _InUnits(tuple(scales), tuple(names)), check_targets=check_numbers)


CUTS = (1, 3, 5, 10)
"""How many of a ranking nDCG looks at."""


def _of_ranking(score: Tensor, worth: Tensor, like: float) -> dict[str, Tensor]:
    """nDCG@{1, 3, 5, 10}, precision@5 and recall@10 of items (n,) that are liked from a worth of `like` on."""
    liked = (worth >= like - 1e-6).to(worth.dtype)
    found = {f"ndcg_{k}": ndcg(score, worth.clamp_min(0), k) for k in CUTS}
    return found | {"precision_5": precision(score, liked, 5), "recall_10": recall(score, liked, 10)}


@dataclass(frozen=True)
class _Rating:
    """The metrics of `rating`."""

    mean: float
    std: float
    low: float
    high: float
    like: float

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        real = batch.weight > 0
        guess, truth = (self.mean + self.std * values[real, 0] for values in (prediction, batch.targets))
        error = guess.clamp(self.low, self.high) - truth
        found = {"mae": error.abs().mean(), "mse": error.square().mean()}
        return found | {"rmse": found["mse"].sqrt()} | _of_ranking(guess, truth, self.like)


def rating(mean: float, std: float, low: float, high: float, like: float) -> Objective:
    r"""Ratings as numbers that were standardised, $y' = (y - \mu) / \sigma$: the loss is `mse` of those.

    Metrics are in ratings, predictions cut to the scale: mae, mse, rmse of a task; and those of the ranking by what is
    predicted: nDCG@{1, 3, 5, 10} with the rating as gain, and precision@5 and recall@10 of the items that were liked.

    Args:
        mean, std: $\mu$ and $\sigma$.
        low, high: ends of the scale.
        like: a rating from which on an item is liked.

    Example:
        >>> batch = Batch.of(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
        >>> metrics = rating(3.0, 1.0, 1.0, 5.0, like=4.0).metrics(torch.tensor([[0.0], [1.0]]), batch)
        >>> [round(float(metrics[name]), 4) for name in ("mae", "ndcg_1", "precision_5")]
        [0.5, 1.0, 0.5]
    """
    return Objective(_squared_error, _Rating(mean, std, low, high, like), check_targets=check_numbers)


@dataclass(frozen=True)
class _Levels:
    """The metrics of `levels`."""

    values: tuple[float, ...]
    mean: float
    std: float
    like: float

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        _check_ways(prediction, batch.targets)
        real = batch.weight > 0
        values = torch.tensor(self.values, dtype=prediction.dtype, device=prediction.device)
        chance, truth = prediction[real].softmax(-1), batch.targets[real].to(prediction.dtype) @ values
        expected = chance @ values
        if len(values) == 2:  # clicked or not
            return {"log_loss": _cross_entropy(prediction, batch)} | _of_ranking(expected, truth, self.like)
        median = values[(chance.cumsum(-1) < 0.5).sum(-1).clamp(max=len(values) - 1)]
        found = {"mae": (median - truth).abs().mean(), "rmse": (expected - truth).square().mean().sqrt()}
        return found | _of_ranking(expected, truth, self.like)

    @property
    def standardised(self) -> tuple[float, ...]:
        """The values, less their mean and in their deviations over the training ratings."""
        return tuple((value - self.mean) / self.std for value in self.values)


def levels(values: Sequence[float], mean: float, std: float, like: float) -> Objective:
    r"""Ratings as one of a few levels: logits and one-hot targets (n, L), cross-entropy as in `classification`.

    A distribution over levels says what a number cannot: its median is the rating that mae asks for, its mean what rmse
    and a ranking ask for. Metrics: mae of the median, rmse of the mean, and the ranking's by the mean, as in `rating`;
    with two levels, clicked or not, log_loss and the ranking's.

    Args:
        values: of the levels, rising.
        mean, std: of the training ratings.
        like: a rating from which on an item is liked.

    Example:
        >>> stars = levels([1, 2, 3], mean=2.0, std=1.0, like=3)
        >>> batch = Batch.of(torch.zeros(2, 1), torch.tensor([2, 0]), ways=3)
        >>> metrics = stars.metrics(torch.tensor([[0.0, 0.0, 9.0], [0.0, 9.0, 0.0]]), batch)
        >>> [round(float(metrics[name]), 3) for name in ("mae", "rmse", "ndcg_5")]
        [0.5, 0.707, 1.0]
    """
    if len(values) < 2 or list(values) != sorted(set(values)):
        raise ValueError(f"levels are two values or more, and rise; got {list(values)}")
    metrics = _Levels(tuple(map(float, values)), float(mean), float(std), float(like))
    return Objective(_cross_entropy, metrics, check_targets=check_one_hot)


def levels_of(objective: Objective) -> tuple[float, ...] | None:
    """The standardised values of the levels that an objective asks for; None if it asks for something else."""
    return objective.metrics.standardised if isinstance(objective.metrics, _Levels) else None


@dataclass(frozen=True)
class _Forecast:
    """The metrics of `forecast`."""

    season: int
    unit: float

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        past = batch.inputs[..., 0]
        moved = (past[:, self.season :] - past[:, : -self.season]).abs().mean(1)
        missed = (prediction - batch.targets).abs().mean(1)
        naive = weighted_mean(moved, batch.weight).clamp_min(1e-3)
        error = self.unit**2 * _squared_error(prediction, batch)
        return {"mase": weighted_mean(missed, batch.weight) / naive, "mse": error}


def forecast(season: int = 1, unit: float = 1.0) -> Objective:
    r"""Forecasts of H values (n, H) from inputs (n, C, 1 + V), the series' past first: the loss is `mse`.

    $$ \text{mase} = \frac{\text{mean} \; |\hat y - y|}{\text{mean} \; |x_t - x_{t-\text{season}}|} $$

    over the horizons and contexts of a query; below 1 is better than repeating the last season. A past that moves by
    less than a thousandth counts as moving by that.

    Args:
        season: steps of a season, fewer than C.
        unit: what the values were divided by; mse is told in units.

    Example:
        >>> batch = Batch.of(torch.tensor([[[0.0], [2.0], [4.0]]]), torch.tensor([[6.0]]))
        >>> {name: float(value) for name, value in forecast().metrics(torch.tensor([[5.0]]), batch).items()}
        {'mase': 0.5, 'mse': 1.0}

    References:
        Hyndman, Koehler: Another look at measures of forecast accuracy, International Journal of Forecasting 22, 2006.

    Deviations:
        The denominator of mase is taken over the contexts, all that a model is shown, in place of the whole history.
    """
    return Objective(_squared_error, _Forecast(season, unit), check_targets=check_numbers)


OF_ITEMS = (_Rating, _Levels)
"""The metrics of objectives whose tasks rate items."""

_WITH_NUMBERS = {
    "next_token_of": _OfTokens,
    "in_units": _InUnits,
    "forecast": _Forecast,
    "rating": _Rating,
    "levels": _Levels,
}


def named(name: str) -> Objective:
    """The objective of this module that goes by a name, as `name_of` gives it.

    Raises:
        ValueError: there is none.

    Example:
        >>> named("mse") is mse, named(name_of(forecast(24))) == forecast(24)
        (True, True)
    """
    word, _, options = name.partition(" ")
    if options and word in _WITH_NUMBERS:
        return globals()[word](**json.loads(options))
    found = globals().get(word)
    if not isinstance(found, Objective):
        known = [known for known, value in globals().items() if isinstance(value, Objective)]
        raise ValueError(f"there is no objective {name!r}; known are {', '.join(known)}")
    return found


def name_of(objective: Objective) -> str:
    """The name that an objective of this module goes by, with its numbers, so that a file can say it.

    Raises:
        ValueError: it is none of this module's.
    """
    for name, kind in _WITH_NUMBERS.items():
        if isinstance(objective.metrics, kind):
            return f"{name} {json.dumps(vars(objective.metrics))}"
    for name, value in globals().items():
        if isinstance(value, Objective) and value == objective:
            return name
    raise ValueError("the objective is none of kshot.objectives, so no file can name it")
