"""Meta-learned update rules: meta-curvature, generated rates, and optimisers that are small networks.

Each is initialised to gradient descent, so that an untrained rule adapts too: the output of a network is 0 at first and
is added to the gradient. Derivatives are exact, where some papers drop second ones, as a first-order solver does.

Shape legend: N elements of all adapting parameters, P adapting tensors, H hidden width, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kshot.annotations import OpenFraction, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.hyperparameters import (
    Number,
    Positive,
    check_hyperparameters,
    keep_hyperparameters,
    refuse_tensor,
)
from kshot.inner.per_parameter import PerParameter
from kshot.inner.rules import UpdateRule
from kshot.inner.transforms import Transform
from kshot.types import Params, Tree


class Curvature(Transform):
    r"""Meta-Curvature: multiplies a gradient along each of its modes by a learned matrix.

    $$ \mathrm{MC}(G) = G \times_1 M_o \times_2 M_i \times_3 M_f, \qquad M_\cdot = I \text{ at first} $$

    for $G$ (outputs, inputs, all other axes); a matrix has two modes, a vector one.

    Args:
        params: the adapting parameters, by name.

    Example:
        >>> sorted(matrix.shape[0] for matrix in Curvature({"w": torch.ones(2, 3)}).parameters())
        [2, 3]

    References:
        Park, Oliva: Meta-Curvature, NeurIPS 2019, arXiv:1902.03356, section 3, without deviations.
    """

    def __init__(self, params: Params) -> None:
        super().__init__()
        matrices = {
            f"{name}.mode{mode}": torch.eye(size, dtype=value.dtype, device=value.device)
            for name, value in params.items()
            for mode, size in enumerate(_modes(value))
        }
        self.matrices = PerParameter(matrices)

    def apply_to(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        results = {}
        for name, grad in grads.items():
            result = grad.reshape(_modes(grad))
            for mode in range(result.ndim):
                matrix = self.matrices[f"{name}.mode{mode}"]
                result = torch.tensordot(matrix, result, ([1], [mode])).movedim(0, mode)
            results[name] = result.reshape(grad.shape)
        return results, state


class Kronecker(Transform):
    r"""Kronecker-factored preconditioning: multiplies the gradient of a matrix from both sides by learned matrices.

    $$ G \leftarrow L G R, \quad \text{that is } (R^\top \otimes L) \operatorname{vec} G, \qquad
       L = A^\top A, \; R = B^\top B \text{ if psd}, \qquad A = I, \; B = I \text{ at first} $$

    for $G$ (outputs, inputs). A vector has $L$ alone. Of a kernel (outputs, inputs, …) each output's matrix
    (inputs, all positions) is multiplied by the same $L$ and $R$.

    Args:
        params: the adapting parameters, by name.
        psd: whether the product is positive semi-definite, so that it turns no gradient around; else $L = A, R = B$.

    Example:
        >>> params = {"weight": torch.ones(4, 3, 5, 5), "bias": torch.ones(4)}
        >>> sorted(matrix.shape[0] for matrix in Kronecker(params).parameters())
        [3, 4, 25]

    References:
        Arnold, Iqbal, Sha: When MAML Can Adapt Fast and How to Assist When It Cannot, arXiv:1910.13603; learn2learn's
        `KroneckerTransform(KroneckerLinear)`, whose right factor of a vector, a number that the left one includes, is
        left out here.
    """

    def __init__(self, params: Params, *, psd: bool = True) -> None:
        super().__init__()
        self.psd = psd
        factors = {
            f"{name}.{side}": torch.eye(size, dtype=value.dtype, device=value.device)
            for name, value in params.items()
            for side, size in zip(("left", "right"), _sides(value))
        }
        self.factors = PerParameter(factors)

    def apply_to(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        return {name: self._preconditioned(name, grad) for name, grad in grads.items()}, state

    def _preconditioned(self, name: str, grad: Tensor) -> Tensor:
        rows, *columns = _sides(grad)
        result = self._factor(f"{name}.left") @ grad.reshape(-1, rows, *columns or [1])
        return (result @ self._factor(f"{name}.right") if columns else result).reshape(grad.shape)

    def _factor(self, name: str) -> Tensor:
        matrix = self.factors[name]
        return matrix.mT @ matrix if self.psd else matrix


class Alfa(UpdateRule):
    r"""ALFA: rates and decays that a small network generates at each step of each task.

    $$ \theta_{i} \leftarrow \beta_{ik} \theta_i - \alpha_{ik} \nabla_i L, \qquad
       (\alpha_{ik}, \beta_{ik}) = (\alpha^0_{ik}, \beta^0_{ik}) \odot (1 + g_\phi(\tau_k))_i, \quad
       \tau_k = \bigl[\overline{\nabla_i L}, \bar\theta_i\bigr]_{i=1}^P $$

    The bars are means over the tensor $i$, 0 for the gradient of an unused one; $\alpha^0, \beta^0$ and $\phi$ are
    meta-learned. $g_\phi$ has two hidden layers of width $2P$.

    Args:
        params: the adapting parameters, by name.
        inner_lr: initial value of $\alpha^0$; that of $\beta^0$ is 1.
        steps: number of steps with their own $\alpha^0_{\cdot k}, \beta^0_{\cdot k}$; later steps use the last ones.

    Example:
        >>> rule = Alfa(params := {"w": torch.tensor([1.0, 1.0])}, 0.5, steps=1)
        >>> rule.update({"w": torch.tensor([2.0, 4.0])}, rule.init(params), params)[0]["w"].tolist()
        [0.0, -1.0]

    References:
        Baik et al.: Meta-Learning with Adaptive Hyperparameters, NeurIPS 2020, arXiv:2011.00209, section 3.

    Deviations:
        1 is added to the output of the network, which is 0 at first, so that training starts from MAML.
    """

    @check_arguments
    def __init__(self, params: Params, inner_lr: PositiveFloat, *, steps: PositiveInt) -> None:
        super().__init__()
        refuse_tensor(inner_lr=inner_lr)
        like = next(iter(params.values()))
        self.names, self.steps = list(params), steps
        width = 2 * len(params)
        self.rate = nn.Parameter(like.new_full((steps, len(params)), inner_lr))
        self.decay = nn.Parameter(like.new_ones(steps, len(params)))
        self.generator = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        ).to(like)
        _zero_init(self.generator[-1])

    def init(self, params: Params) -> Tree:
        if set(params) != set(self.names):
            raise ValueError(f"the rule was built for the parameters {', '.join(self.names)}, got {', '.join(params)}")
        return {"step": 0}

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        step = min(state["step"], self.steps - 1)
        grad_means = [grads[n].mean() if n in grads else params[n].new_zeros(()) for n in self.names]
        means = grad_means + [params[name].mean() for name in self.names]
        rates, decays = (1 + self.generator(torch.stack(means).to(self.rate))).chunk(2)
        rates, decays = (rates * self.rate[step]).unbind(), (decays * self.decay[step]).unbind()
        index = {name: i for i, name in enumerate(self.names)}
        adapted = {
            name: decays[index[name]].to(params[name]) * params[name] - rates[index[name]].to(params[name]) * grad
            for name, grad in grads.items()
        }
        return params | adapted, {"step": state["step"] + 1}


class CoordinateLSTM(UpdateRule):
    r"""A learned optimiser: one small LSTM, applied to each element of the parameters with its own state.

    $$ h_k, c_k = \mathrm{LSTM}(\mathrm{pre}(\nabla L), h_{k-1}, c_{k-1}), \qquad
       \theta \leftarrow \theta - \alpha (\nabla L + w^\top h_k) $$

    with two layers, and gradients preprocessed by `log_scale`.

    Args:
        inner_lr: $\alpha > 0$.
        hidden: H, the width of each layer.

    Example:
        >>> rule, params = CoordinateLSTM(0.5), {"w": torch.tensor([1.0])}
        >>> rule.update({"w": torch.tensor([2.0])}, rule.init(params), params)[0]["w"].tolist()
        [0.0]

    References:
        Andrychowicz et al.: Learning to learn by gradient descent by gradient descent, arXiv:1606.04474, which drops
        second derivatives and does not add the gradient.
    """

    inner_lr: Number

    @check_hyperparameters
    def __init__(self, inner_lr: Positive, *, hidden: PositiveInt = 20) -> None:
        super().__init__()
        self.hidden = hidden
        keep_hyperparameters(self, {"inner_lr": inner_lr})
        self.layers = nn.ModuleList([nn.Linear(features + hidden, 4 * hidden) for features in (2, hidden)])
        self.output = nn.Linear(hidden, 1)
        _zero_init(self.output)

    def init(self, params: Params) -> Tree:
        zero = self.output.weight.new_zeros(sum(value.numel() for value in params.values()), self.hidden)
        return [(zero, zero) for _ in self.layers]

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        grad_N, used_N = _flat_grads(grads, params)
        signal, new = log_scale(grad_N).to(state[0][0]), []
        for layer, (out_NH, cell_NH) in zip(self.layers, state):
            gates = layer(torch.cat([signal, out_NH], 1)).chunk(4, 1)
            forget_gate, input_gate, output_gate = (gate.sigmoid() for gate in gates[:3])
            cell_NH = forget_gate * cell_NH + input_gate * gates[3].tanh()
            signal = output_gate * cell_NH.tanh()
            new.append((signal, cell_NH))
        step_N = self.inner_lr * (grad_N + self.output(signal).squeeze(1))
        return _apply_step(params, step_N, grads), _of_used(used_N, new, state)


class CoordinateMLP(UpdateRule):
    r"""A learned optimiser: one small perceptron, applied to each element of the parameters.

    $$ m_k = 0.9\, m_{k-1} + 0.1\, g, \quad g = \nabla L, \qquad
       \theta \leftarrow \theta - \alpha \bigl(g + f_\phi(\mathrm{pre}(g), \mathrm{pre}(m_k), \theta)\bigr) $$

    Args:
        inner_lr, hidden: as in `CoordinateLSTM`.

    Example:
        >>> rule, params = CoordinateMLP(0.5), {"w": torch.tensor([1.0])}
        >>> rule.update({"w": torch.tensor([2.0])}, rule.init(params), params)[0]["w"].tolist()
        [0.0]

    References:
        Metz et al.: Understanding and correcting pathologies in the training of learned optimizers, arXiv:1810.10180.

    Deviations:
        Five features per element instead of the paper's momenta at many time scales.
    """

    inner_lr: Number

    @check_hyperparameters
    def __init__(self, inner_lr: Positive, *, hidden: PositiveInt = 20) -> None:
        super().__init__()
        keep_hyperparameters(self, {"inner_lr": inner_lr})
        self.network = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        _zero_init(self.network[-1])

    def init(self, params: Params) -> Tree:
        return torch.zeros_like(_flat(params))

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        grad_N, used_N = _flat_grads(grads, params)
        mean_N = 0.9 * state + 0.1 * grad_N
        feat_NF = torch.cat([log_scale(grad_N), log_scale(mean_N), _flat(params)[:, None]], 1)
        extra_N = self.network(feat_NF.to(next(self.network.parameters()))).squeeze(1)
        return _apply_step(params, self.inner_lr * (grad_N + extra_N), grads), _of_used(used_N, mean_N, state)


class GatedRule(UpdateRule):
    r"""The meta-LSTM: parameters are the cell state of an LSTM, whose gates are learned rates and decays.

    $$ \theta_k = f_k \odot \theta_{k-1} - i_k \odot \nabla L, \qquad
       f_k = \sigma(w_f^\top [\mathrm{pre}(\nabla L), \theta_{k-1}, f_{k-1}] + b_f), \quad i_k \text{ likewise} $$

    with weights shared by all elements.

    Args:
        inner_lr, keep: initial values of $i$ and $f$, between 0 and 1.

    Example:
        >>> rule, params = GatedRule(0.5, keep=0.999), {"w": torch.tensor([1.0])}
        >>> rule.update({"w": torch.tensor([2.0])}, rule.init(params), params)[0]["w"]
        tensor([-0.0010], ...)

    References:
        Ravi, Larochelle: Optimization as a Model for Few-Shot Learning, ICLR 2017.

    Deviations:
        The gates receive the gradient, where the paper applies an LSTM to gradient and loss first; second derivatives
        are not dropped.
    """

    @check_arguments
    def __init__(self, inner_lr: OpenFraction, *, keep: OpenFraction = 0.9999) -> None:
        super().__init__()
        refuse_tensor(inner_lr=inner_lr, keep=keep)
        self.gates = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
        for gate, value in zip(self.gates, (keep, inner_lr)):
            nn.init.zeros_(gate.weight)  # type: ignore[arg-type]
            nn.init.constant_(gate.bias, math.log(value / (1 - value)))  # type: ignore[arg-type]

    def init(self, params: Params) -> Tree:
        zero = torch.zeros_like(_flat(params))
        return [zero + torch.sigmoid(gate.bias) for gate in self.gates]  # type: ignore[arg-type]

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        (grad_N, used_N), value_N = _flat_grads(grads, params), _flat(params)
        common = [log_scale(grad_N), value_N[:, None]]
        keep_N, rate_N = new = [
            torch.sigmoid(gate(torch.cat([*common, last_N[:, None]], 1)).squeeze(1))
            for gate, last_N in zip(self.gates, state)
        ]
        return _apply_step(params, value_N - keep_N * value_N + rate_N * grad_N, grads), _of_used(used_N, new, state)


def log_scale(values: Tensor, p: float = 10.0) -> Tensor:
    r"""Magnitude and sign of values (N,) over many orders of magnitude, as two features (N, 2):

    $$ \mathrm{pre}(v) = \begin{cases} (\log|v| / p,\ \operatorname{sgn} v) & |v| \ge e^{-p} \\ (-1,\ e^p v)
       & \text{else} \end{cases} $$

    """
    floor = math.exp(-p)
    size = values.abs().clamp_min(floor).log() / p
    sign = torch.where(values.abs() >= floor, values.sign(), values / floor)
    return torch.stack([size, sign], 1)


def _modes(value: Tensor) -> tuple[int, ...]:
    if value.ndim <= 2:
        return tuple(value.shape) or (1,)
    return value.shape[0], value.shape[1], value[0, 0].numel()


def _sides(value: Tensor) -> tuple[int, ...]:
    """The numbers of rows and columns of the matrices of a tensor; of rows alone for a vector."""
    if value.ndim <= 2:
        return tuple(value.shape) or (1,)
    return value.shape[1], value[0, 0].numel()


def _flat(params: Params) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])


def _flat_grads(grads: Params, params: Params) -> tuple[Tensor, Tensor | None]:
    """The gradients of all elements (N,), 0 for parameters without one; and a mask of the others, if not all."""
    flat = _flat({name: grads[name] if name in grads else torch.zeros_like(value) for name, value in params.items()})
    if len(grads) == len(params):
        return flat, None
    return flat, _flat(
        {name: torch.full_like(value, name in grads, dtype=torch.bool) for name, value in params.items()}
    )


def _of_used(used_N: Tensor | None, new: Tree, old: Tree) -> Tree:
    """The new state of elements that have a gradient, the old of the others; leaves (N, ...)."""
    if used_N is None:
        return new
    return tree_map(lambda a, b: torch.where(used_N.view(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _apply_step(params: Params, step_N: Tensor, grads: Params) -> Params:
    """The parameters minus a flattened step, if they have a gradient."""
    steps = step_N.split([value.numel() for value in params.values()])
    return {
        name: value - step.view(value.shape).to(value) if name in grads else value
        for (name, value), step in zip(params.items(), steps)
    }


def _zero_init(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
