"""Translations of operators that ONNX or onnxruntime does not have, above all those of linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import BOOL, DOUBLE, script
from onnxscript import opset18 as op

OPSET = 18
"""Version of the operators of all graphs."""


@script()
def eliminate(square: DOUBLE[...], right: DOUBLE[...]) -> DOUBLE[...]:
    """The X of A X = B, for A (..., N, N) and B (..., N, C): Gauss-Jordan elimination with partial pivoting.

    Rows are not swapped: each step marks its pivot row as used, and the last product puts the rows in order.
    """
    both = op.Add(square, op.Mul(op.ReduceMax(right, [-2, -1]), 0.0))  # leading axes of both
    both = op.Concat(both, op.Add(right, op.Mul(op.ReduceMax(square, [-2, -1]), 0.0)), axis=-1)
    size = op.Squeeze(op.Shape(square, start=-1))
    used = op.Less(op.ReduceMax(op.Abs(both), [-1], keepdims=0), 0.0)
    index = op.Range(0, size, 1)
    for k in range(size):
        column = op.Gather(both, k, axis=-1)
        pivot = op.Equal(index, op.ArgMax(op.Where(used, -1.0, op.Abs(column)), axis=-1, keepdims=1))
        row = op.MatMul(op.Unsqueeze(op.Cast(pivot, to=11), [-2]), both)
        row = row / op.Unsqueeze(op.Gather(row, k, axis=-1), [-1])
        both = op.Where(op.Unsqueeze(pivot, [-1]), row, both - op.Unsqueeze(column, [-1]) * row)
        used = op.Or(used, pivot)
    order = op.Slice(both, [0], op.Unsqueeze(size, [0]), [-1])
    solution = op.Slice(both, op.Unsqueeze(size, [0]), [2147483647], [-1])
    rows = op.Unsqueeze(op.ArgMax(order, axis=-2, keepdims=0), [-1])
    return op.MatMul(op.Cast(op.Equal(rows, index), to=11), solution)


def solve(square: Any, right: Any, *, left: bool = True) -> Any:
    """`torch.linalg.solve` of matrices, computed in float64."""
    assert left, "only A X = B is translated"
    wide = eliminate(op.Cast(square, to=DOUBLE.dtype), op.Cast(right, to=DOUBLE.dtype))
    return op.CastLike(wide, square)


def inverse(square: Any) -> Any:
    """`torch.linalg.inv`, computed in float64."""
    index = op.Range(0, op.Squeeze(op.Shape(square, start=-1)), 1)
    eye = op.Cast(op.Equal(op.Unsqueeze(index, [0]), op.Unsqueeze(index, [1])), to=DOUBLE.dtype)
    return op.CastLike(eliminate(op.Cast(square, to=DOUBLE.dtype), eye), square)


def where(condition: Any, first: Any, second: Any) -> Any:
    """`torch.where`; onnxruntime has none of booleans."""
    if first.dtype != BOOL.dtype:
        return op.Where(condition, first, second)
    return op.Or(op.And(condition, first), op.And(op.Not(condition), second))


def matmul(first: Any, second: Any) -> Any:
    """`torch.matmul`; a vector is a matrix, since onnxruntime 1.32 fuses a transposed matrix and a vector wrongly."""
    ranks = len(first.shape or ()), len(second.shape or ())
    if ranks[1] == 1 < ranks[0]:
        return op.Squeeze(op.MatMul(first, op.Unsqueeze(second, [-1])), [-1])
    if ranks[0] == 1 < ranks[1]:
        return op.Squeeze(op.MatMul(op.Unsqueeze(first, [0]), second), [-2])
    return op.MatMul(first, second)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.linalg_solve.default: solve,
    torch.ops.aten.linalg_inv.default: inverse,
    torch.ops.aten.where.self: where,
    torch.ops.aten.matmul.default: matmul,
}
"""What `torch.onnx.export` translates an operator to."""
