"""Recurrent layers as loops over time steps, for batches of tasks: PyTorch's kernels do not run under `vmap`.

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
"""(W_i x + b_i, state, W_h, b_h) -> new state; its first element is the output."""


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
    cell = lambda projected, state, weight, bias: (activation(projected + F.linear(state[0], weight, bias)),)  # noqa: E731
    output, (last,) = _run(cell, input, (hidden,), *rest)
    return output, last


RECURRENT_OVERRIDES: dict[Callable, Callable] = {
    torch.lstm: lstm,
    torch.gru: gru,
    torch.rnn_tanh: partial(rnn, torch.tanh),
    torch.rnn_relu: partial(rnn, torch.relu),
}


def _lstm_cell(projected: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    input_gate, forget_gate, candidate, output_gate = (projected + F.linear(state[0], weight, bias)).chunk(4, -1)
    cell = forget_gate.sigmoid() * state[1] + input_gate.sigmoid() * candidate.tanh()
    return output_gate.sigmoid() * cell.tanh(), cell


def _gru_cell(projected: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = (
        part.chunk(3, -1) for part in (projected, F.linear(state[0], weight, bias))
    )
    update = (update_x + update_h).sigmoid()
    return ((1 - update) * (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh() + update * state[0],)


def _run(
    cell: Cell,
    input: Tensor,
    initial: State,
    weights: list[Tensor],
    has_bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, State]:
    num_directions = 2 if bidirectional else 1
    num_weights = len(weights) // (num_layers * num_directions)
    if num_weights != (4 if has_bias else 2):
        raise ValueError("an LSTM with proj_size does not run in a batch of tasks: use mode='loop' for this model")
    outputs = input.transpose(0, 1) if batch_first else input  # (L, n, D)
    final_states: list[State] = []
    for layer in range(num_layers):
        directions = []
        for direction in range(num_directions):
            index, order = layer * num_directions + direction, -1 if direction else 1
            input_weight, hidden_weight, *biases = weights[index * num_weights : (index + 1) * num_weights]
            input_bias, hidden_bias = biases or (None, None)
            state, steps = tuple(part[index] for part in initial), []
            for projected in F.linear(outputs, input_weight, input_bias).unbind(0)[::order]:
                state = cell(projected, state, hidden_weight, hidden_bias)
                steps.append(state[0])
            final_states.append(state)
            directions.append(torch.stack(steps[::order]))
        outputs = torch.cat(directions, -1)
        if dropout and layer < num_layers - 1:
            outputs = F.dropout(outputs, dropout, training)
    final = tuple(torch.stack(parts) for parts in zip(*final_states))
    return (outputs.transpose(0, 1) if batch_first else outputs), final
