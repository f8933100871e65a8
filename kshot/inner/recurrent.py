"""Recurrent layers written out step by step, for batches of tasks: PyTorch's own do not run under `vmap`.

Shape legend: L steps, n examples, D inputs, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Tensor, Tensor | None], State]
"""(W_i x + b_i, state, W_h, b_h) -> state, whose first part is the output."""


def lstm(input: Tensor, hidden: State, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As `torch.lstm` without packing."""
    output, (last, cell) = _run(_lstm_cell, input, tuple(hidden), *rest)
    return output, last, cell


def gru(input: Tensor, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """As `torch.gru` without packing."""
    output, (last,) = _run(_gru_cell, input, (hidden,), *rest)
    return output, last


def rnn(activation: Callable[[Tensor], Tensor], input: Tensor, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """As `torch.rnn_tanh` and `torch.rnn_relu` without packing."""
    cell = lambda seen, state, weight, bias: (activation(seen + F.linear(state[0], weight, bias)),)  # noqa: E731
    output, (last,) = _run(cell, input, (hidden,), *rest)
    return output, last


WRITTEN_OUT: dict[Callable, Callable] = {
    torch.lstm: lstm,
    torch.gru: gru,
    torch.rnn_tanh: partial(rnn, torch.tanh),
    torch.rnn_relu: partial(rnn, torch.relu),
}


def _lstm_cell(seen: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    let, keep, new, give = (seen + F.linear(state[0], weight, bias)).chunk(4, -1)
    cell = keep.sigmoid() * state[1] + let.sigmoid() * new.tanh()
    return give.sigmoid() * cell.tanh(), cell


def _gru_cell(seen: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    (reset_x, keep_x, new_x), (reset_h, keep_h, new_h) = (
        part.chunk(3, -1) for part in (seen, F.linear(state[0], weight, bias))
    )
    keep = (keep_x + keep_h).sigmoid()
    return ((1 - keep) * (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh() + keep * state[0],)


def _run(
    cell: Cell,
    input: Tensor,
    start: State,
    weights: list[Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
    batch_first: bool,
) -> tuple[Tensor, State]:
    ways, each = (2 if both_ways else 1), len(weights) // (layers * (2 if both_ways else 1))
    if each != (4 if biased else 2):
        raise ValueError("an LSTM with proj_size does not run in a batch of tasks: use mode='loop' for this model")
    outputs = input.transpose(0, 1) if batch_first else input  # (L, n, D)
    ends: list[State] = []
    for layer in range(layers):
        streams = []
        for way in range(ways):
            number = layer * ways + way
            own = [*weights[number * each : (number + 1) * each], None, None]
            state, stream = tuple(part[number] for part in start), []
            for seen in F.linear(outputs, own[0], own[2]).unbind(0)[:: -1 if way else 1]:  # type: ignore[arg-type]
                state = cell(seen, state, own[1], own[3])  # type: ignore[arg-type]
                stream.append(state[0])
            ends.append(state)
            streams.append(torch.stack(stream[:: -1 if way else 1]))
        outputs = torch.cat(streams, -1)
        if dropout and layer < layers - 1:
            outputs = F.dropout(outputs, dropout, training)
    last = tuple(torch.stack(parts) for parts in zip(*ends))
    return (outputs.transpose(0, 1) if batch_first else outputs), last
