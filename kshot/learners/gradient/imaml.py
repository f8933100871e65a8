"""Implicit MAML: the meta-gradient at a minimum of the inner problem, by the implicit function theorem."""

from __future__ import annotations

from kshot import objectives
from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.inner.functional import BatchNorm
from kshot.inner.implicit import Implicit
from kshot.inner.linear_solvers import Method
from kshot.inner.per_parameter import Pattern
from kshot.inner.rules import SGD
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.objectives import Objective
from kshot.supplied import BaseModel


def imaml(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 10,
    proximity: PositiveFloat = 1.0,
    damping: NonNegativeFloat = 0.0,
    method: Method = "cg",
    iterations: PositiveInt = 5,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Implicit MAML: the meta-gradient of a regularised inner minimum, whichever path the inner steps took.

    $$ \varphi^* = \arg\min_\varphi L_{\text{support}}(\varphi) + \tfrac\lambda2 \lVert \varphi - \theta \rVert^2,
       \qquad \nabla_\theta = \bigl(I + \tfrac1\lambda \nabla^2 L_{\text{support}}(\varphi^*)\bigr)^{-1}
       \nabla L_{\text{query}}(\varphi^*) $$

    Args:
        model, inner_lr, objective, adaptable, batchnorm: as in `maml`.
        steps: number of gradient steps towards $\varphi^*$; memory does not grow with it.
        proximity: $\lambda > 0$.
        damping: added to $\lambda$ in the linear system.
        method: solver of the linear system, "cg" or "neumann".
        iterations: Hessian-vector products per task and meta-gradient.

    Returns:
        A learner whose meta-gradient is that of the minimum; it is approximate if `steps` do not reach the minimum.

    Example:
        >>> imaml(nn.Linear(1, 1), inner_lr=0.1, proximity=2.0).solver.proximity
        2.0

    References:
        Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, NeurIPS 2019, arXiv:1909.04630.

    Deviations:
        Parameters that do not adapt learn too, by the same theorem. With dropout in the model each Hessian-vector
        product draws its own mask.
    """
    solver = Implicit(SGD(inner_lr), steps, proximity=proximity, damping=damping, method=method, iterations=iterations)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)
