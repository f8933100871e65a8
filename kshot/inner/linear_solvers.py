"""Iterative solvers of a linear system, given as the product of its matrix with a vector.

A fixed number of iterations, with no branches on values, so that they run under `vmap`; iterations after convergence
change nothing. Vectors are (N,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]

Method = Literal["cg", "neumann"]
"""Solver for symmetric positive definite matrices."""

GeneralMethod = Literal["cg", "neumann", "gmres", "bicgstab", "normal_cg"]
"""Solver; all but "cg" are for any matrix, "neumann" for those near a multiple of the identity."""


def solve(
    method: GeneralMethod,
    product: Product,
    transposed: Product,
    right: Tensor,
    *,
    iterations: int,
    scale: float | Tensor,
) -> Tensor:
    """Solve product(x) = right from x = 0; `transposed` is the product with the transposed matrix."""
    if method == "neumann":
        return neumann(product, right, iterations, scale)
    if method == "normal_cg":
        return conjugate_gradients(lambda v: transposed(product(v)), transposed(right), iterations)
    return _KRYLOV[method](product, right, iterations)


def conjugate_gradients(product: Product, right: Tensor, iterations: int) -> Tensor:
    """Solve a symmetric positive definite system: Hestenes, Stiefel, 1952."""
    solution, residual = torch.zeros_like(right), right
    direction, norm = residual, residual @ residual
    for _ in range(iterations):
        image = product(direction)
        step = _ratio(norm, direction @ image)
        solution, residual = solution + step * direction, residual - step * image
        norm, last_norm = residual @ residual, norm
        direction = residual + _ratio(norm, last_norm) * direction
    return solution


def neumann(product: Product, right: Tensor, iterations: int, scale: float | Tensor) -> Tensor:
    r"""Sum $s \sum_{j \le m} (I - s A)^j b$, which converges if all eigenvalues of $I - s A$ are inside of 1."""
    total = term = scale * right
    for _ in range(iterations):
        term = term - scale * product(term)
        total = total + term
    return total


def gmres(product: Product, right: Tensor, iterations: int) -> Tensor:
    """Minimise the residual over the Krylov space, without restarts: Saad, Schultz, 1986."""
    norm = right.norm()
    basis = [_ratio(right, norm)]
    columns: list[Tensor] = []
    for _ in range(iterations):
        image = product(basis[-1])
        rest, vectors = image, torch.stack(basis)
        column = torch.zeros_like(vectors[:, 0])
        for _ in range(2):  # twice is enough for orthogonality to machine precision
            part = vectors @ rest
            rest, column = rest - part @ vectors, column + part
        size = rest.norm()
        # a rest of rounding errors: the space holds the solution
        size = torch.where(size > 100 * torch.finfo(size.dtype).eps * image.norm(), size, 0.0)
        basis.append(_ratio(rest, size))
        columns.append(torch.cat([column, size[None], size.new_zeros(iterations - len(columns) - 1)]))
    hessenberg = torch.stack(columns, 1)
    wide = torch.promote_types(hessenberg.dtype, torch.float32)
    weights = torch.linalg.pinv(hessenberg.to(wide))[:, 0].to(right.dtype) * norm
    return weights @ torch.stack(basis[:-1])


def bicgstab(product: Product, right: Tensor, iterations: int) -> Tensor:
    """Stabilised biconjugate gradients, two products per iteration: van der Vorst, 1992."""
    solution, residual, shadow, direction = torch.zeros_like(right), right, right, right
    overlap, floor = shadow @ residual, torch.finfo(right.dtype).eps * right.norm()
    for _ in range(iterations):
        is_active = residual.norm() > floor
        image = product(direction)
        step = _ratio(overlap, shadow @ image) * is_active
        half = residual - step * image
        half_image = product(half)
        smoothing = _ratio(half @ half_image, half_image @ half_image) * is_active
        solution = solution + step * direction + smoothing * half
        residual = half - smoothing * half_image
        overlap, last_overlap = shadow @ residual, overlap
        factor = _ratio(overlap, last_overlap) * _ratio(step, smoothing)
        direction = residual + factor * (direction - smoothing * image)
    return solution


_KRYLOV: dict[str, Callable[[Product, Tensor, int], Tensor]] = {
    "cg": conjugate_gradients,
    "gmres": gmres,
    "bicgstab": bicgstab,
}


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """The ratio, or 0 where the divisor is 0."""
    return torch.where(b != 0, a / torch.where(b != 0, b, 1.0), 0.0)
