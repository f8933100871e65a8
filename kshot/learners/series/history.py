"""The past that a forecast may use: the whole history of a support set, and the context of a query after it.

Windows of a support set overlap, and are joined to one history. A query's context, too, begins within that history, or
after it; where it begins is found by comparing values, so that nothing but the task is needed.

Shape legend: n support windows, C context steps, H steps ahead, W = C + H, L steps of history, R contexts, P = L + C
steps of the past, the last of them the last of a context.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kshot.types import Tree

TOLERANCE = 1e-5
"""Difference, relative to the largest value, up to which values are the same."""
MIN_OVERLAP = 3
"""Values that must agree where a context is taken to continue the history."""


class Past(NamedTuple):
    """What precedes each forecast: values (R, P), 0 where unknown, and whether they are known (R, P).

    The known values of a row are its last ones, without a gap.
    """

    values: Tensor
    known: Tensor

    @property
    def num_known(self) -> Tensor:
        """The number of known values of each row, (R,)."""
        return self.known.sum(-1)


def history_of(inputs: Tensor, targets: Tensor, weight: Tensor, stride: int) -> Tree:
    """Join the windows of a support set, each `stride` steps after the one before.

    Windows of weight 0 are left out. If windows disagree where they should overlap, or leave a gap, the history begins
    after that: with the last window at the latest.

    Args:
        inputs: (n, C, 1 + V), the value first.
        targets: (n, H).
        weight: (n,).

    Returns:
        `{"values": (L,), "known": (L,)}`, which end with the last window; `known` is 0 or 1.
    """
    windows_nW = torch.cat([inputs[..., 0], targets.to(inputs.dtype)], -1)
    count, width = windows_nW.shape
    length = (count - 1) * stride + width
    real_n1 = (weight > 0)[:, None]
    windows_nW = torch.where(real_n1, windows_nW, 0.0)
    index_nW = _offsets(weight, stride)[:, None] + torch.arange(width, device=weight.device)
    index = torch.where(real_n1, index_nW, 0).flatten()
    zeros = windows_nW.new_zeros(length)
    times = zeros.scatter_add(0, index, real_n1.expand(-1, width).flatten().to(zeros.dtype))
    values = zeros.scatter_add(0, index, windows_nW.flatten()) / times.clamp_min(1)
    joined_nW = torch.where(real_n1, values[index].view(count, width), 0.0)
    agree = _same((joined_nW - windows_nW).abs().amax(), windows_nW.abs().amax())
    is_last_n1 = real_n1 & (index_nW[:, -1:] == length - 1)
    last_W = (windows_nW * is_last_n1).sum(0)
    alone = torch.nn.functional.pad(last_W, (length - width, 0))
    in_last = torch.arange(length, device=weight.device) >= length - width
    unbroken = (times > 0).to(values.dtype).flip(0).cumprod(0).flip(0)
    known = torch.where(agree, unbroken, in_last & real_n1.any())
    return {"values": torch.where(agree, values, alone) * known, "known": known}


def past_of_windows(history: Tree, inputs: Tensor, weight: Tensor, stride: int) -> Past:
    """What precedes the targets of each window of the support set of a history."""
    end_R = _offsets(weight, stride) + inputs.shape[1]
    context_RC, length = inputs[..., 0], history["values"].shape[0]
    index = end_R[:, None] - torch.arange(inputs.shape[1], 0, -1, device=weight.device)
    inside = index.clamp(0, length - 1)
    held = (history["values"][inside] - context_RC).abs() * history["known"][inside]
    joined = _same(held.amax(-1), context_RC.abs().amax(-1))
    return _extend(history, context_RC, end_R, joined)


def past_of_queries(history: Tree, inputs: Tensor) -> Past:
    """What precedes each query, from its context (M, C, 1 + V) and the history where the context continues it.

    A context continues the history after d further steps, d the least number from 0 for which all values agree that
    both have; at least `MIN_OVERLAP` of them, else the past is the context alone.
    """
    context_MC = inputs[..., 0]
    values, known = history["values"].to(context_MC.dtype), history["known"].to(context_MC.dtype)
    size = context_MC.shape[1]
    later = torch.arange(size - min(MIN_OVERLAP, size) + 1, device=context_MC.device)
    index_DC = len(values) - size + torch.arange(size, device=context_MC.device) + later[:, None]
    inside = (index_DC >= 0) & (index_DC < len(values))
    index_DC = index_DC.clamp(0, len(values) - 1)
    held_DC = known[index_DC] * inside
    apart_MDC = (values[index_DC] - context_MC[:, None]).abs() * held_DC
    enough_D = held_DC.sum(-1) >= min(MIN_OVERLAP, size)
    matches_MD = _same(apart_MDC.amax(-1), context_MC.abs().amax(-1, keepdim=True)) & enough_D
    first_M = matches_MD.to(torch.uint8).argmax(-1)
    return _extend(history, context_MC, len(values) + later[first_M], matches_MD.any(-1))


def _extend(history: Tree, context_RC: Tensor, end_R: Tensor, joined_R: Tensor) -> Past:
    """The history up to the step before `end_R`, whose last C steps are the context; the context alone if not joined"""
    values, known = history["values"].to(context_RC.dtype), history["known"].to(context_RC.dtype)
    length, size = len(values), context_RC.shape[1]
    index_RL = end_R[:, None] - size - torch.arange(length, 0, -1, device=context_RC.device)
    inside = (index_RL >= 0) & (index_RL < length) & joined_R[:, None]
    index_RL = index_RL.clamp(0, length - 1)
    known_RL = known[index_RL] * inside
    before_RL = torch.where(known_RL > 0, values[index_RL], 0.0)
    return Past(torch.cat([before_RL, context_RC], 1), torch.cat([known_RL, torch.ones_like(context_RC)], 1))


def _offsets(weight: Tensor, stride: int) -> Tensor:
    """The first step of each window in a history that ends with the last one, (n,)."""
    real = (weight > 0).long()
    return (len(weight) - real.sum() + real.cumsum(0) - real) * stride


def _same(difference: Tensor, size: Tensor) -> Tensor:
    return difference <= TOLERANCE * size + 1e-12
