"""Gradient learners whose update rule is meta-learned together with the initialisation."""

from __future__ import annotations

from typing import Literal

from torch import nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeInt, PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.inner.learned_rules import Alfa, CoordinateLSTM, CoordinateMLP, Curvature, GatedRule, Kronecker
from kshot.inner.per_parameter import LearnedRate, Pattern, adaptable_params
from kshot.inner.rules import SGD, UpdateRule
from kshot.inner.transforms import Chain
from kshot.learners.gradient.gradient_learner import GradientLearner, make_solver
from kshot.objectives import Objective
from kshot.supplied import BaseModel

Kind = Literal["lstm", "mlp", "gates"]
"""Architecture of a learned optimiser."""


def meta_sgd(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Meta-SGD: MAML with a meta-learned rate, and thereby a direction, for each element of each parameter.

    $$ \theta_{k+1} = \theta_k - \alpha \odot \nabla L_{\text{support}}(\theta_k), \qquad
       \min_{\theta_0, \alpha} \; \mathbb{E}_{\text{task}} \; L_{\text{query}}(\theta_K) $$

    Args:
        model, steps, order, objective, adaptable, batchnorm: as in `maml`.
        inner_lr: initial value of all elements of $\alpha$.

    Returns:
        A learner with one rate more for each parameter that adapts.

    Example:
        >>> learner = meta_sgd(nn.Linear(3, 2), inner_lr=0.1)
        >>> sum(parameter.numel() for parameter in learner.parameters())
        16

    References:
        Li et al.: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, arXiv:1707.09835.

    Deviations:
        Any number of steps, which share the rates; the paper takes one. All rates start equal rather than random, and a
        rate may become negative, as in the paper.
    """
    rule = SGD(LearnedRate(adaptable_params(model, adaptable), inner_lr, per="element"))
    solver = make_solver(order, rule, steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)


def meta_curvature(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Meta-Curvature: MAML whose gradients are multiplied along each mode of a tensor by a meta-learned matrix.

    $$ \theta_{k+1} = \theta_k - \alpha \, \nabla L_{\text{support}}(\theta_k) \times_1 M_o \times_2 M_i \times_3 M_f $$

    Args:
        model, inner_lr, steps, order, objective, adaptable, batchnorm: as in `maml`.

    Returns:
        A learner with outputs² + inputs² + positions² further parameters for a tensor (outputs, inputs, positions).

    Example:
        >>> learner = meta_curvature(nn.Linear(3, 2, bias=False), inner_lr=0.1)
        >>> sum(parameter.numel() for parameter in learner.parameters())  # 6 of the model, 2² + 3²
        19

    References:
        Park, Oliva: Meta-Curvature, NeurIPS 2019, arXiv:1902.03356.
    """
    rule = Chain(Curvature(adaptable_params(model, adaptable)), SGD(inner_lr))
    solver = make_solver(order, rule, steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)


def meta_kfo(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    psd: bool = True,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Meta-KFO: MAML whose gradients are multiplied from both sides by meta-learned matrices.

    $$ \theta_{k+1} = \theta_k - \alpha \, A \, \nabla L_{\text{support}}(\theta_k) \, B \quad \text{for each matrix} $$

    Args:
        model, inner_lr, steps, order, objective, adaptable, batchnorm: as in `maml`.
        psd: whether the preconditioner is positive semi-definite; see `inner.learned_rules.Kronecker`.

    Returns:
        A learner with outputs² + inputs² further parameters for a matrix (outputs, inputs), and inputs² + positions²
        for a kernel.

    Example:
        >>> learner = meta_kfo(nn.Linear(3, 2, bias=False), inner_lr=0.1)
        >>> sum(parameter.numel() for parameter in learner.parameters())  # 6 of the model, 2² + 3²
        19

    References:
        Arnold, Iqbal, Sha: When MAML Can Adapt Fast and How to Assist When It Cannot, arXiv:1910.13603.

    Deviations:
        The linear transform of learn2learn's `KroneckerTransform`, without the paper's networks of several layers.
    """
    rule = Chain(Kronecker(adaptable_params(model, adaptable), psd=psd), SGD(inner_lr))
    solver = make_solver(order, rule, steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)


def alfa(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 5,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""ALFA: a small network generates rate and decay of each tensor at each step from weights and gradients.

    $$ \theta_{k+1} = \beta_k \odot \theta_k - \alpha_k \odot \nabla L_{\text{support}}(\theta_k), \qquad
       (\alpha_k, \beta_k) = (\alpha^0_k, \beta^0_k) \odot
       \Bigl(1 + g_\phi\bigl(\overline{\nabla L}, \bar\theta_k\bigr)\Bigr) $$

    Args:
        model, order, objective, adaptable, batchnorm: as in `maml`.
        inner_lr: initial value of the rates; see `inner.learned_rules.Alfa`.
        steps: number of inner steps, at least 1.

    Example:
        >>> learner = alfa(nn.Linear(3, 2), inner_lr=0.1)
        >>> learner.solver.rule.rate.shape  # steps, tensors
        torch.Size([5, 2])

    References:
        Baik et al.: Meta-Learning with Adaptive Hyperparameters, NeurIPS 2020, arXiv:2011.00209.

    Deviations:
        Those of `inner.learned_rules.Alfa`. The paper's ALFA + random initialisation is this with the model frozen.
    """
    solver = make_solver(order, Alfa(adaptable_params(model, adaptable), inner_lr, steps=steps), steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)


@check_arguments
def learned_optimizer(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 5,
    kind: Kind = "lstm",
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""A learned optimiser and a learned initialisation: a small network computes each element's step.

    $$ \theta_{k+1} = \theta_k - \alpha \bigl(\nabla L + m_\phi(\nabla L, s_k)\bigr) $$

    for "lstm" and "mlp"; for "gates" see `GatedRule`.

    Args:
        model, inner_lr, steps, objective, adaptable, batchnorm: as in `maml`.
        kind: "lstm" for `CoordinateLSTM`, "mlp" for `CoordinateMLP`, "gates" for `GatedRule`, all of
            `inner.learned_rules`.
        order: 2 is exact; 1 treats the inner gradients as constants, as the papers do.

    Raises:
        ValueError: as `maml`, or an unknown kind.

    Example:
        >>> learner = learned_optimizer(nn.Linear(3, 2), inner_lr=0.1, kind="mlp")
        >>> type(learner.solver.rule).__name__
        'CoordinateMLP'

    References:
        Andrychowicz et al., arXiv:1606.04474; Ravi, Larochelle: Optimization as a Model for Few-Shot Learning,
        ICLR 2017; Metz et al., arXiv:1810.10180.

    Deviations:
        Those of the rule; order 2 by default.
    """
    rules: dict[str, type[UpdateRule]] = {"lstm": CoordinateLSTM, "mlp": CoordinateMLP, "gates": GatedRule}
    rule = rules[kind](inner_lr)
    rule.to(next(iter(adaptable_params(model, adaptable).values())))
    solver = make_solver(order, rule, steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)
