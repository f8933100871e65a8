"""Time of the closed-form fit of partial pooling, and that of statsmodels' mixed model with the same features.

    OMP_NUM_THREADS=1 python benchmarks/pooling_speed.py
    pip install statsmodels  # for the column of the peer

Groups follow a plane of their own, drawn around one that they share, with noise. "fit" is `partial_pooling` as it is,
with knots, correlations and priors. "REML" is its restricted maximum likelihood of random intercepts and slopes alone,
without priors, and "MixedLM" that of statsmodels, with the same features. CPU seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from kshot.learners.pooling.basis import Basis
from kshot.learners.pooling.empirical_bayes import Penalties, Training, fit_classes, fit_numbers
from kshot.learners.pooling.variance_components import GroupedRows, fit_components

SIZES = ((2, 50, 10), (4, 100, 20), (8, 30, 20), (8, 300, 100), (24, 30, 20), (64, 30, 20))
"""Inputs, groups, rows of a group."""


def drawn(inputs: int, groups: int, rows: int) -> Training:
    """Rows of groups, each with a plane of its own."""
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(groups), rows)
    x = random.normal(size=(len(group), inputs))
    slopes = random.normal(size=inputs) + 0.5 * random.normal(size=(groups, inputs))
    y = (x * slopes[group]).sum(1) + random.normal(size=groups)[group] + 0.5 * random.normal(size=len(group))
    return Training(torch.from_numpy(x), torch.from_numpy(y)[:, None], torch.from_numpy(group))


def seconds(work: Callable[[Training], object], data: Training) -> float:
    """CPU seconds."""
    started = time.process_time()
    work(data)
    return time.process_time() - started


def fit(data: Training) -> None:
    """Fit `partial_pooling` with its defaults, to numbers or to two classes."""
    basis = Basis(data.x_NF.shape[1], 1, knots=5).double()
    basis.measure(data.x_NF, data.group_N)
    (fit_classes if len(data.target_NK.unique()) == 2 else fit_numbers)(data, basis, Penalties(10.0, 5.0), 0)


def reml(data: Training) -> float:
    """The greatest log density of random intercepts and slopes."""
    features = torch.cat([torch.ones_like(data.x_NF[:, :1]), data.x_NF], 1)
    block = torch.zeros(features.shape[1], dtype=torch.int64)
    rows = GroupedRows(
        features, features, data.target_NK[:, 0], torch.ones(len(features)).double(), data.group_N, block
    )
    return fit_components(rows, slope_penalty=0, correlation_penalty=0, steps=500, tolerance=1e-9).log_marginal


def mixed_lm(data: Training) -> float:
    """The same by statsmodels."""
    import statsmodels.api as sm

    features = np.concatenate([np.ones((len(data.x_NF), 1)), data.x_NF.numpy()], 1)
    return sm.MixedLM(data.target_NK[:, 0].numpy(), features, data.group_N.numpy(), exog_re=features).fit(reml=True).llf


def main() -> None:
    """Print the table."""
    print("inputs  groups  rows    fit  fit, classes    REML  MixedLM")
    for inputs, groups, rows in SIZES:
        data = drawn(inputs, groups, rows)
        classes = data._replace(target_NK=(data.target_NK > 0).double())
        times = [seconds(fit, data), seconds(fit, classes), seconds(reml, data)]
        try:
            peer = f"{seconds(mixed_lm, data):9.2f}" if inputs <= 8 else "        -"
        except ImportError:
            peer = "        ?"
        print(f"{inputs:6}{groups:8}{rows:6}{times[0]:7.2f}{times[1]:14.2f}{times[2]:8.2f}{peer}", flush=True)


if __name__ == "__main__":
    main()
