"""Descriptors of a support set: sizes, statistics of its targets, and how well simple fits predict held-out rows.

Shape legend: n rows, F features of an input, D numbers of a target, K kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.types import Batch, Tree, tree_leaves

WIDTHS = (4.0, 2.0, 1.0, 0.5, 0.25)
"""Length scales of the Gaussian kernels, in standard deviations of an input times the root of their number."""
RIDGE = 0.05
EQUAL = 1e-3
"""Targets are equal if they differ by less, in standard deviations."""
KERNELS = ("linear", "quadratic", *(f"gaussian of width {width:g}" for width in WIDTHS))
DESCRIPTORS = (
    "log number of examples", "log number of inputs", "log number of targets or classes", "log least shots of a class",
    "log size of targets", "log spread of targets", "skewness of targets", "kurtosis of targets",
    "share of examples with another of the same target", "error of the nearest example",
    *(f"error of a {kernel} fit" for kernel in KERNELS),
)  # fmt: skip
"""Names of what `describe` returns. Errors are logarithms, relative to the mean of the other targets."""


def describe(support: Batch, *, classes: bool) -> Tensor:
    r"""Descriptors of a support set, float64 (len(DESCRIPTORS),), on the CPU; NaN where there are too few rows.

    The fits are kernel ridge regressions of standardised targets, and of one-hot labels, on standardised inputs. Their
    errors for each row, when it is left out, have a closed form, with the kernel matrix $k$:

    $$ y_i - \hat y_{-i}(x_i) = \frac{[(k + \lambda I)^{-1} y]_i}{[(k + \lambda I)^{-1}]_{ii}} $$

    Rows of weight 0 have no effect, and neither has the order of rows. Inputs of several parts are joined; parts that
    are integers, such as symbols, are left out.

    Args:
        support: leaves (n, ...).
        classes: whether targets are one-hot.

    Example:
        >>> x = torch.linspace(-1, 1, 10)[:, None]
        >>> found = dict(zip(DESCRIPTORS, describe(Batch.of(x, 3 * x), classes=False).tolist()))
        >>> found["error of a linear fit"] < -4 < found["error of a gaussian of width 0.25 fit"]
        True

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, section 5.4.2 (leave-one-out errors).
        Vanschoren: Meta-Learning: A Survey, arXiv:1810.03548, section 3 (such descriptors of data sets).
    """
    real = (support.weight > 0).cpu()
    target_nD = _columns(support.targets)[real]
    input_nF = _columns(support.inputs)[real]
    rows, (inputs, targets) = len(target_nD), (input_nF.shape[1], target_nD.shape[1])
    counts = target_nD.sum(0)
    ways = float((counts > 0).sum()) if classes else targets
    shots = float(counts[counts > 0].min()) if classes and (counts > 0).any() else rows
    sizes = torch.tensor([rows, inputs, ways, shots], dtype=torch.float64).clamp_min(0.5).log()
    if rows < 3:
        return torch.cat([sizes, torch.full((len(DESCRIPTORS) - len(sizes),), torch.nan, dtype=torch.float64)])
    target_nD = target_nD[:, target_nD.std(0, correction=0) > 1e-12 * target_nD.abs().amax(0)]
    return torch.cat([sizes, _moments(target_nD), _errors(_standardised(input_nF), _standardised(target_nD))])


def _columns(tree: Tree) -> Tensor:
    """The floating-point numbers of a tree as rows (n, F), float64 on the CPU."""
    leaves = [leaf.detach().cpu() for leaf in tree_leaves(tree)]
    flat = [leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None] for leaf in leaves]
    numbers = [leaf.double() for leaf in flat if leaf.is_floating_point()]
    return torch.cat(numbers, 1) if numbers else flat[0].double()[:, :0]


def _standardised(rows_nF: Tensor) -> Tensor:
    std_F = rows_nF.std(0, correction=0)
    return (rows_nF - rows_nF.mean(0)) / torch.where(std_F > 0, std_F, 1.0)


def _moments(target_nD: Tensor) -> Tensor:
    """Size, spread, skewness, kurtosis and the share of equal targets, (5,); NaN if all targets are the same."""
    if not target_nD.shape[1]:
        return torch.full((5,), torch.nan, dtype=torch.float64)
    unit_nD = _standardised(target_nD)
    apart_nn = (unit_nD[:, None] - unit_nD[None]).abs().amax(2)
    apart_nn.fill_diagonal_(torch.inf)
    size, spread = target_nD.square().mean().sqrt(), target_nD.var(0, correction=0).mean().sqrt()
    equal = (apart_nn.amin(1) < EQUAL).double().mean()
    return torch.stack([size.log(), spread.log(), unit_nD.pow(3).mean(), unit_nD.pow(4).mean().log(), equal])


def _errors(input_nF: Tensor, target_nD: Tensor) -> Tensor:
    """The logarithms of the leave-one-out errors of the nearest row and of each kernel, (1 + K,)."""
    rows = len(input_nF)
    if not (input_nF.shape[1] and target_nD.shape[1]):
        return torch.full((1 + len(KERNELS),), torch.nan, dtype=torch.float64)
    product_nn = input_nF @ input_nF.mT / input_nF.shape[1]
    diagonal_n = product_nn.diagonal()
    square_nn = (diagonal_n[:, None] + diagonal_n - 2 * product_nn).clamp_min(0)
    kernel_Knn = torch.stack(
        [product_nn + 1, (product_nn + 1).square(), *(torch.exp(-square_nn / (2 * width**2)) for width in WIDTHS)]
    )
    inverse_Knn = torch.linalg.inv(kernel_Knn + RIDGE * torch.eye(rows, dtype=torch.float64))
    left_KnD = (inverse_Knn @ target_nD) / inverse_Knn.diagonal(dim1=1, dim2=2)[..., None]
    distance_nn = square_nn.clone()
    distance_nn.fill_diagonal_(torch.inf)
    near_nn = (distance_nn <= distance_nn.amin(1, keepdim=True) * (1 + 1e-9)).double()
    near_nD = target_nD - near_nn @ target_nD / near_nn.sum(1, keepdim=True)
    left = torch.cat([near_nD[None], left_KnD]).square().mean((1, 2))
    return ((left + 1e-4) / (rows / (rows - 1)) ** 2).log()
