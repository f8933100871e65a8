"""Replacements of operations whose derivatives are silently wrong, or that do not run under `vmap`.

In PyTorch (observed in 2.13) the second derivative of layer and instance normalisation by their scale is wrong when
tasks run under `vmap`, and the padding row of an embedding gets a gradient. Kernels of recurrent layers and cells, and
functions that write to `out=`, do not run there. The second derivative of weight normalisation is wrong everywhere, and
that of group normalisation crashes on some inputs. The gradient of `rrelu` is wrong if a backward pass repeats it.

Shape legend: L steps, n examples, D inputs, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.inner.layer_errors import is_batched


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.layer_norm`."""
    normed = _normalized(input, tuple(range(-len(normalized_shape), 0)), eps)
    return _scaled(normed, weight, bias).to(input.dtype)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.instance_norm`, but without an update of the running statistics."""
    shape = (-1, *[1] * (input.ndim - 2))
    if use_input_stats or running_mean is None or running_var is None:
        normed = _normalized(input, tuple(range(2, input.ndim)), eps)
    else:
        normed = (input - running_mean.view(shape)) * torch.rsqrt(running_var.view(shape) + eps)
    affine = (None if vector is None else vector.view(shape) for vector in (weight, bias))
    return _scaled(normed, *affine).to(input.dtype)


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """As `torch.nn.functional.embedding`."""
    rows = F.embedding(input, weight, None, *args, **kwargs)
    if padding_idx is None:
        return rows
    return torch.where((input == padding_idx % len(weight))[..., None], rows.detach(), rows)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.normalize`, which spectral normalisation lets write to its buffers."""
    normed = F.normalize(input, p, dim, eps)
    return normed if out is None else out.copy_(normed)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """As `torch._weight_norm`, whose second derivative is wrong (observed in PyTorch 2.13), with and without `vmap`."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def group_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As `torch.nn.functional.group_norm`, whose second derivative crashes on inputs with channels last (2.13)."""
    return F.group_norm(input.contiguous(), *args, **kwargs)


def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """As `torch.nn.functional.rrelu`, whose gradient is wrong if a backward pass repeats it (2.13).

    Its kernel saves the slopes for the backward pass before it draws them; `torch.utils.checkpoint` stops as soon as
    all is saved, which then is memory without values. The random numbers are those of the kernel, except under `vmap`,
    where it does not run.
    """
    return _scaled_by_slopes(input, lower, upper, training, None, inplace)


def _scaled_by_slopes(
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> Tensor:
    with torch.no_grad():
        slopes = torch.empty_like(input, memory_format=torch.contiguous_format)
        if not training:
            slopes.fill_((lower + upper) / 2).masked_fill_(input > 0, 1)
        elif is_batched(input):
            slopes = torch.where(input > 0, 1, slopes.uniform_(lower, upper, generator=generator))
        else:
            torch.ops.aten.rrelu_with_noise(input.detach(), slopes, lower, upper, True, generator)
    return input.mul_(slopes) if inplace else input * slopes


DERIVATIVE_OVERRIDES: dict[Callable, Callable] = {
    torch._weight_norm: weight_norm,
    F.group_norm: group_norm,
    F.rrelu: rrelu,
    torch.rrelu: _scaled_by_slopes,
    torch.rrelu_: partial(_scaled_by_slopes, inplace=True),
}


def _normalized(input: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    centred = wide - wide.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


def _scaled(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Tensor, Tensor | None], State]
"""(W_i x + b_i, state, W_h, b_h) -> new state; its first element is the output."""


def lstm(input: Tensor, hidden: State, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As `torch.lstm` without packing."""
    output, (last, cell) = _loop_over_time(_lstm_cell, input, tuple(hidden), *rest)
    return output, last, cell


def gru(input: Tensor, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """As `torch.gru` without packing."""
    output, (last,) = _loop_over_time(_gru_cell, input, (hidden,), *rest)
    return output, last


def rnn(activation: Callable[[Tensor], Tensor], input: Tensor, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """As `torch.rnn_tanh` and `torch.rnn_relu` without packing."""
    output, (last,) = _loop_over_time(partial(_rnn_cell, activation), input, (hidden,), *rest)
    return output, last


def _rnn_cell(
    activation: Callable[[Tensor], Tensor], projected: Tensor, state: State, weight: Tensor, bias: Tensor | None
) -> State:
    return (activation(projected + F.linear(state[0], weight, bias)),)


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


def _single_step(
    cell: Cell,
    input: Tensor,
    hx: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    """One step of a cell, as `torch.lstm_cell` for a pair of states, and as `torch.gru_cell` for a state."""
    state = tuple(hx) if isinstance(hx, list | tuple) else (hx,)
    new = cell(F.linear(input, w_ih, b_ih), state, w_hh, b_hh)
    return new if len(state) > 1 else new[0]


def _loop_over_time(
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
    projects = num_weights > (4 if has_bias else 2)  # an LSTM with proj_size
    outputs = input.transpose(0, 1) if batch_first else input  # (L, n, D)
    final_states: list[State] = []
    for layer in range(num_layers):
        directions = []
        for direction in range(num_directions):
            index, order = layer * num_directions + direction, -1 if direction else 1
            input_weight, hidden_weight, *others = weights[index * num_weights : (index + 1) * num_weights]
            projection = others.pop() if projects else None
            input_bias, hidden_bias = others or (None, None)
            state, steps = tuple(part[index] for part in initial), []
            for projected in F.linear(outputs, input_weight, input_bias).unbind(0)[::order]:
                state = cell(projected, state, hidden_weight, hidden_bias)
                if projection is not None:
                    state = F.linear(state[0], projection), *state[1:]
                steps.append(state[0])
            final_states.append(state)
            directions.append(torch.stack(steps[::order]))
        outputs = torch.cat(directions, -1)
        if dropout and layer < num_layers - 1:
            outputs = F.dropout(outputs, dropout, training)
    final = tuple(torch.stack(parts) for parts in zip(*final_states))
    return (outputs.transpose(0, 1) if batch_first else outputs), final


VMAP_OVERRIDES: dict[Callable, Callable] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: lambda input, shape, weight=None, bias=None, eps=1e-5, *_: layer_norm(
        input, shape, weight, bias, eps
    ),
    F.instance_norm: instance_norm,
    F.embedding: embedding,
    F.normalize: normalize,
    torch.lstm_cell: partial(_single_step, _lstm_cell),
    torch.gru_cell: partial(_single_step, _gru_cell),
    torch.rnn_tanh_cell: partial(_single_step, partial(_rnn_cell, torch.tanh)),
    torch.rnn_relu_cell: partial(_single_step, partial(_rnn_cell, torch.relu)),
}

RECURRENT_OVERRIDES: dict[Callable, Callable] = {
    torch.lstm: lstm,
    torch.gru: gru,
    torch.rnn_tanh: partial(rnn, torch.tanh),
    torch.rnn_relu: partial(rnn, torch.relu),
}
