"""Attention over weighted rows, and perceptrons, for amortised and in-context learners.

Shape legend: n rows attended to, m rows that attend, d width; `...` further leading axes that broadcast.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from kshot.inner.precision import at_least_float32


def weighted_row_mean(rows: Tensor, weight: Tensor) -> Tensor:
    """The mean (d,) of rows (n, d) under weights (n,), in the rows' type; 0 if all weights are."""
    dtype, rows = rows.dtype, at_least_float32(rows)
    weight = weight.to(rows.dtype)
    return (weight @ rows / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)).to(dtype)


class Attention(nn.Module):
    r"""Multi-head attention over weighted rows, for h heads of width d / h whose outputs are mixed by a linear map:

    $$ \sum_i a_{mi} v_i, \qquad a_{mi} \propto w_i \exp\bigl(q_m^\top k_i / \sqrt{d / h}\bigr) $$

    A row of weight 2 counts as two rows, one of weight 0 as none. Keys and values are computed separately, so that a
    state can hold them.

    Args:
        width: d, of the rows and of the output.
        heads: h, a divisor of d.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width=}, {heads=}")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def memory(self, rows: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys (..., n, d) of rows (..., n, d), and values of their content, by default the rows."""
        return self.key(rows), self.value(rows if content is None else content)

    def forward(self, rows: Tensor, memory: tuple[Tensor, Tensor], log_weight: Tensor) -> Tensor:
        """Attend from rows (..., m, d) to keys and values (..., n, d) with log-weights (n,) or (..., 1, m, n)."""
        query, key, value = (self._split_heads(part) for part in (self.query(rows), *memory))
        scores = at_least_float32(query @ key.mT * query.shape[-1] ** -0.5) + log_weight
        read = scores.softmax(-1).to(value.dtype) @ value
        return self.out(read.transpose(-3, -2).flatten(-2))

    def _split_heads(self, rows: Tensor) -> Tensor:
        """(..., n, d) to (..., heads, n, d / heads)."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


def perceptron(inputs: int, width: int, outputs: int, depth: int = 1) -> nn.Sequential:
    """Linear layers with GELU between them, `depth` of them hidden."""
    sizes = [inputs, *[width] * depth, outputs]
    layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
    for a, b in pairwise(sizes[1:]):
        layers += [nn.GELU(), nn.Linear(a, b)]
    return nn.Sequential(*layers)
