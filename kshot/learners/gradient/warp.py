"""Warp layers: parts of a model that do not adapt and precondition the gradients of the parts that do."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeInt, PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.inner.per_parameter import adaptable_params
from kshot.inner.rules import SGD
from kshot.learners.gradient.gradient_learner import GradientLearner, make_solver
from kshot.objectives import Objective

_WARPED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Warped(nn.Module):
    """A layer followed by a linear map of its outputs, which is initialised as the identity.

    Args:
        layer: a linear layer or a convolution; the map of the latter is a convolution of size 1.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        weight = layer.weight
        assert isinstance(weight, Tensor)
        channels, kernel = len(weight), () if isinstance(layer, nn.Linear) else (1,)
        self.warp: nn.Module = type(layer)(channels, channels, *kernel, bias=False).to(weight)
        with torch.no_grad():
            self.warp.weight.copy_(torch.eye(channels).reshape(self.warp.weight.shape))  # type: ignore[operator, arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.warp(self.layer(inputs))


def with_warps(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which each linear layer and convolution is `Warped`.

    Example:
        >>> [name for name, _ in with_warps(nn.Sequential(nn.Linear(2, 3), nn.ReLU())).named_parameters()]
        ['0.layer.weight', '0.layer.bias', '0.warp.weight']
    """
    if type(model) in _WARPED:
        return Warped(copy.deepcopy(model))
    warped = copy.deepcopy(model)
    for module in list(warped.modules()):
        for name, child in list(module.named_children()):
            if type(child) in _WARPED:
                setattr(module, name, Warped(child))
    return warped


def warp_maml(
    model: nn.Module,
    *,
    warp: str,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Warp-MAML: MAML with warp layers $\omega$ that are meta-learned and do not adapt.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla_\theta L_{\text{support}}(\theta_k; \omega), \qquad
       \min_{\theta_0, \omega} \; \mathbb{E}_{\text{task}} \; L_{\text{query}}(\theta_K; \omega) $$

    Args:
        model: has warp layers between its other layers; `with_warps` adds some to a model.
        warp: shell pattern of the warp layers' parameters.
        inner_lr, steps, order, objective, batchnorm: as in `maml`.

    Raises:
        ValueError: as `maml`, or a `warp` that matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> list(warp_maml(model, warp="2.*", inner_lr=0.1).adaptable_params())
        ['0.weight', '0.bias', '4.weight', '4.bias']

    References:
        Flennerhag et al.: Meta-Learning with Warped Gradient Descent, ICLR 2020, arXiv:1909.00025 (Warp-MAML).

    Deviations:
        The meta-gradient is MAML's, through the inner steps; WarpGrad's own objective, over whole trajectories
        without backpropagation through them, is not implemented.
    """
    adaptable_params(model, warp)  # raises if the pattern matches nothing
    solver = make_solver(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=("*", f"!{warp}"), batchnorm=batchnorm)


def t_net(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""T-Net: MAML in which a meta-learned linear map follows each layer and sets the metric of its gradients.

    $$ y = T W x, \qquad W \leftarrow W - \alpha \nabla_W L_{\text{support}}, \quad T \text{ meta-learned} $$

    Args:
        model: copied; in the copy $T$, initialised as the identity, follows each linear layer and convolution.
        inner_lr, steps, order, objective, batchnorm: as in `maml`.

    Raises:
        ValueError: as `maml`, or a model without such layers.

    Example:
        >>> list(t_net(nn.Sequential(nn.Linear(1, 8)), inner_lr=0.1).adaptable_params())
        ['0.layer.weight', '0.layer.bias']

    References:
        Lee, Choi: Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace, ICML 2018,
        arXiv:1801.05558.

    Deviations:
        T-Net, not MT-Net: no learned mask of what adapts.
    """
    pattern = "*warp.weight"
    model = with_warps(model)
    adaptable_params(model, pattern)
    solver = make_solver(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=("*", f"!{pattern}"), batchnorm=batchnorm)
