"""Forecasts of a time series.

Shape legend: n examples, C steps of context, V covariates, H steps of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kshot.objectives.base import Objective, name_with_options, weighted_mean
from kshot.objectives.regression import mse, squared_error
from kshot.types import Batch

MIN_NAIVE_ERROR = 1e-3


@dataclass(frozen=True)
class _ScaledError:
    """The metrics of `forecast`; comparable, so that equal objectives are equal."""

    season: int
    unit: float

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        past = batch.inputs[..., 0]
        naive_error = (past[:, self.season :] - past[:, : -self.season]).abs().mean(1)
        error = (prediction - batch.targets).abs().mean(1)
        naive = weighted_mean(naive_error, batch.weight).clamp_min(MIN_NAIVE_ERROR)
        squared = self.unit**2 * squared_error(prediction, batch)
        return {"mase": weighted_mean(error, batch.weight) / naive, "mse": squared}


def forecast(season: int = 1, unit: float = 1.0) -> Objective:
    r"""Forecasts of H values (n, H) from inputs (n, C, 1 + V), the series' past first: the loss is `mse`.

    $$ \text{mase} = \frac{\text{mean} \; |\hat y - y|}{\text{mean} \; |x_t - x_{t-\text{season}}|} $$

    over the horizons and contexts of a query; a value below 1 is better than repeating the last season. The denominator
    is at least 0.001.

    Args:
        season: period of the season in steps, fewer than C.
        unit: scale by which the values were divided; the metric mse is in original units.

    Example:
        >>> import torch
        >>> batch = Batch.of(torch.tensor([[[0.0], [2.0], [4.0]]]), torch.tensor([[6.0]]))
        >>> {name: float(value) for name, value in forecast().metrics(torch.tensor([[5.0]]), batch).items()}
        {'mase': 0.5, 'mse': 1.0}

    References:
        Hyndman, Koehler: Another look at measures of forecast accuracy, International Journal of Forecasting 22, 2006.

    Deviations:
        The denominator of mase is computed on the contexts, all that a model sees, instead of the whole history.
    """
    metrics = _ScaledError(season, unit)
    return mse._replace(metrics=metrics, name=name_with_options("forecast", vars(metrics)))
