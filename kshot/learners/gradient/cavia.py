"""CAVIA: a few context parameters adapt; all tasks share the model that reads them.

Shape legend: n examples, D inputs, P context parameters, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.inner.rules import SGD
from kshot.learners.gradient.gradient_learner import GradientLearner, make_solver
from kshot.objectives import Objective
from kshot.types import Tree


class Appended(nn.Module):
    """Calls a model with context parameters appended to each input: (n, D) becomes (n, D + P).

    Args:
        model: takes inputs (n, D + P).
        task_dim: P.
    """

    context: Tensor

    def __init__(self, model: nn.Module, task_dim: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("context", _zeros(model, task_dim), persistent=False)

    def forward(self, inputs: Tensor) -> Tree:
        if inputs.ndim != 2:
            raise ValueError(
                f"context parameters are appended to inputs (n, D), got {tuple(inputs.shape)}: "
                "for images name the layers to modulate, as film=['body.1']"
            )
        return self.model(torch.cat([inputs, self.context.expand(len(inputs), -1)], 1))


class FiLM(nn.Module):
    r"""Calls a model with some layers' outputs modulated by context parameters $\varphi$, channel by channel:

    $$ h_c \leftarrow (1 + \gamma_c(\varphi)) h_c + \beta_c(\varphi), \qquad (\gamma, \beta) = W \varphi $$

    The model is not changed: the layers are modulated by hooks that exist only while it runs.

    Args:
        model: any module.
        layers: qualified names of layers whose outputs are (n, C, ...): convolutions, norms or linear layers.
        task_dim: P.

    Raises:
        ValueError: a layer that the model lacks, or whose number of channels is unknown.
    """

    context: Tensor

    def __init__(self, model: nn.Module, layers: Sequence[str], task_dim: int) -> None:
        super().__init__()
        self.model, self.layers = model, list(layers)
        self.register_buffer("context", _zeros(model, task_dim), persistent=False)
        self.modulations = nn.ModuleList(
            nn.Linear(task_dim, 2 * _channels(model, layer), bias=False).to(self.context) for layer in layers
        )

    def forward(self, *inputs: Tree, **named: Tree) -> Tree:
        hooks = [
            self.model.get_submodule(layer).register_forward_hook(partial(self._modulate, modulation))
            for layer, modulation in zip(self.layers, self.modulations)
        ]
        try:
            return self.model(*inputs, **named)
        finally:
            for hook in hooks:
                hook.remove()

    def _modulate(self, modulation: nn.Module, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        scale_C, shift_C = modulation(self.context).chunk(2)
        shape = (-1, *[1] * (output.ndim - 2))
        return output * (1 + scale_C.view(shape)) + shift_C.view(shape)


@check_arguments
def cavia(
    model: nn.Module,
    *,
    task_dim: PositiveInt,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    order: DerivativeOrder = 2,
    film: Sequence[str] = (),
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""CAVIA: only a vector of context parameters adapts, from zero; all tasks share the model.

    $$ \varphi_0 = 0, \quad \varphi_{k+1} = \varphi_k - \alpha \nabla_\varphi L_{\text{support}}(\varphi_k, \theta),
       \qquad \min_\theta \; \mathbb{E}_{\text{task}} \; L_{\text{query}}(\varphi_K, \theta) $$

    Args:
        model: takes inputs (n, D + task_dim) if `film` is empty, else the task's inputs.
        task_dim: P, the number of context parameters.
        inner_lr, steps, order, objective, batchnorm: as in `maml`.
        film: qualified names of the layers that the context modulates (FiLM), for images; if empty, the context is
            appended to the inputs.

    Returns:
        A learner whose states hold P numbers, besides BatchNorm's statistics.

    Raises:
        ValueError: as `maml`, or layers that the model lacks.

    Example:
        >>> learner = cavia(nn.Linear(1 + 4, 1), task_dim=4, inner_lr=1.0, objective=objectives.mse)
        >>> state = learner.adapt(kshot.Batch.of(torch.ones(3, 1), torch.ones(3, 1)))
        >>> state["params"]["context"].shape
        torch.Size([4])

    References:
        Zintgraf et al.: Fast Context Adaptation via Meta-Learning, ICML 2019, arXiv:1810.03642.

    Deviations:
        FiLM's scale is relative to 1 and its map has no bias, so that a context of zero leaves the model as it is.
    """
    conditioned = FiLM(model, film, task_dim) if film else Appended(model, task_dim)
    solver = make_solver(order, SGD(inner_lr), steps)
    return GradientLearner(conditioned, objective, solver, adaptable="context", batchnorm=batchnorm)


def _zeros(model: nn.Module, size: int) -> Tensor:
    like = next(model.parameters(), torch.empty(0))
    return torch.zeros(size, dtype=like.dtype, device=like.device)


def _channels(model: nn.Module, layer: str) -> int:
    module: nn.Module | None = dict(model.named_modules()).get(layer)
    if module is None:
        names = ", ".join(name for name, _ in model.named_modules() if name)
        raise ValueError(f"the model has no layer {layer!r} to modulate; its layers are: {names}")
    for attribute in ("out_channels", "num_features", "num_channels", "out_features"):
        if isinstance(channels := getattr(module, attribute, None), int):
            return channels
    raise ValueError(
        f"the number of channels of layer {layer!r} ({type(module).__name__}) is unknown; "
        "name a convolution, norm or linear layer"
    )
