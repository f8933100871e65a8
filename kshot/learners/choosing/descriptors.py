"""Descriptors of a support set: sizes, statistics of its targets, and how well simple fits predict held-out rows.

Shape legend: n rows, F features of an input, D numbers of a target, K kernels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kshot.types import Batch, Tree, tree_leaves

Floats = NDArray[np.float64]

WIDTHS = np.array([4.0, 2.0, 1.0, 0.5, 0.25])
"""Length scales of the Gaussian kernels, in standard deviations of an input times the root of their number."""
RIDGE = 0.05
EQUAL = 1e-3
"""Targets are equal if they differ by less, in standard deviations."""
LEAST_ERROR = 1e-4
KERNELS = ("linear", "quadratic", *(f"gaussian of width {width:g}" for width in WIDTHS))
SIZES = (
    "log number of examples", "log number of inputs", "log number of targets or classes", "log least shots of a class",
)  # fmt: skip
MOMENTS = (
    "log size of targets", "log spread of targets", "skewness of targets", "log kurtosis of targets",
    "share of examples with another of the same target",
)  # fmt: skip
ERRORS = ("error of the nearest example", *(f"error of a {kernel} fit" for kernel in KERNELS))
DESCRIPTORS = (*SIZES, *MOMENTS, *ERRORS)
"""Names of what `describe` returns. Errors are logarithms, relative to the mean of the other targets."""


def describe(support: Batch, *, classes: bool) -> Floats:
    r"""Descriptors of a support set, (len(DESCRIPTORS),); NaN where there are too few rows, or they do not vary.

    The fits are kernel ridge regressions of standardised targets, and of one-hot labels, on standardised inputs. Their
    errors for each row, when it is left out, have a closed form, with the kernel matrix $k$:

    $$ y_i - \hat y_{-i}(x_i) = \frac{[(k + \lambda I)^{-1} y]_i}{[(k + \lambda I)^{-1}]_{ii}} $$

    Rows of weight 0 have no effect, and neither has the order of rows. Inputs of several parts are joined; parts that
    are integers, such as symbols, are left out.

    Args:
        support: leaves (n, ...), on any device.
        classes: whether targets are one-hot.

    Example:
        >>> x = torch.linspace(-1, 1, 10)[:, None]
        >>> found = dict(zip(DESCRIPTORS, describe(Batch.of(x, 3 * x), classes=False)))
        >>> bool(found["error of a linear fit"] < -4 < found["error of a gaussian of width 0.25 fit"])
        True

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, section 5.4.2 (leave-one-out errors).
        Vanschoren: Meta-Learning: A Survey, 2018, arXiv:1810.03548, section 3 (descriptors of data sets).
    """
    real = support.weight.detach().cpu().numpy() > 0
    target_nD, input_nF = _columns(support.targets)[real], _columns(support.inputs)[real]
    found = np.full(len(DESCRIPTORS), np.nan)
    counts = target_nD.sum(0)
    ways = (counts > 0).sum() if classes else target_nD.shape[1]
    shots = counts[counts > 0].min() if classes and ways else len(target_nD)
    found[: len(SIZES)] = np.log(np.maximum([len(target_nD), input_nF.shape[1], ways, shots], 0.5))
    unit_nD = _standardised(target_nD)
    if len(unit_nD) > 2 and unit_nD.shape[1]:
        found[len(SIZES) : -len(ERRORS)] = _moments(target_nD, unit_nD)
        if (standard_nF := _standardised(input_nF)).shape[1]:
            found[-len(ERRORS) :] = _errors(standard_nF, unit_nD)
    return found.round(9)  # sums in another order are the same


def _columns(tree: Tree) -> Floats:
    """The floating-point numbers of a tree as rows (n, F)."""
    leaves = [leaf.detach().flatten(1) if leaf.ndim > 1 else leaf.detach()[:, None] for leaf in tree_leaves(tree)]
    numbers = [leaf.cpu().double().numpy() for leaf in leaves if leaf.is_floating_point()]
    return np.concatenate(numbers, 1) if numbers else np.zeros((len(leaves[0]), 0))


def _standardised(rows_nF: Floats) -> Floats:
    """The columns that vary, with mean 0 and variance 1."""
    if not rows_nF.size:
        return rows_nF[:, :0]
    apart_nF = rows_nF - rows_nF.mean(0)
    std_F = np.sqrt(np.square(apart_nF).mean(0))
    varies_F = std_F > 1e-9 * np.abs(rows_nF).max(0)
    return apart_nF[:, varies_F] / std_F[varies_F]


def _moments(target_nD: Floats, unit_nD: Floats) -> list[float]:
    """The values of `MOMENTS`."""
    apart_nn = np.abs(unit_nD[:, None] - unit_nD).max(2)
    np.fill_diagonal(apart_nn, np.inf)
    size, spread = np.square(target_nD).mean(), np.square(target_nD - target_nD.mean(0)).mean()
    skewness, kurtosis = (unit_nD**3).mean(), (unit_nD**4).mean()
    return [np.log(size) / 2, np.log(spread) / 2, skewness, np.log(kurtosis), (apart_nn.min(1) < EQUAL).mean()]


def _errors(input_nF: Floats, target_nD: Floats) -> Floats:
    """The values of `ERRORS`."""
    rows = len(input_nF)
    product_nn = input_nF @ input_nF.T / input_nF.shape[1]
    size_n = product_nn.diagonal()
    square_nn = np.maximum(size_n[:, None] + size_n - 2 * product_nn, 0)
    gaussian_Knn = np.exp(-square_nn / (2 * WIDTHS[:, None, None] ** 2))
    kernel_Knn = np.concatenate([product_nn[None] + 1, (product_nn[None] + 1) ** 2, gaussian_Knn])
    inverse_Knn = np.linalg.inv(kernel_Knn + RIDGE * np.eye(rows))
    left_KnD = inverse_Knn @ target_nD / np.diagonal(inverse_Knn, axis1=1, axis2=2)[..., None]
    np.fill_diagonal(square_nn, np.inf)
    near_nn = square_nn <= square_nn.min(1, keepdims=True) * (1 + 1e-9)
    near_nD = target_nD - near_nn @ target_nD / near_nn.sum(1, keepdims=True)
    errors = [np.square(near_nD).mean(), *np.square(left_KnD).mean((1, 2))]
    return np.log((np.array(errors) + LEAST_ERROR) / (rows / (rows - 1)) ** 2)
