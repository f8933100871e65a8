"""MeLU: MAML for rating models, which adapts the layers above the embeddings."""

from __future__ import annotations

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeInt, PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.inner.per_parameter import Pattern
from kshot.inner.rules import SGD
from kshot.learners.gradient.gradient_learner import GradientLearner, make_solver
from kshot.objectives import Objective
from kshot.supplied import BaseModel


def melu(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    order: DerivativeOrder = 2,
    decision: Pattern = ("body.*", "head.*"),
    objective: Objective = objectives.mse,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""MeLU: the decision layers adapt to a user; all users share the embeddings of items and users.

    $$ \theta_2 \leftarrow \theta_2 - \alpha \nabla_{\theta_2} L_{\text{support}}(\theta_1, \theta_2), \qquad
       \theta_1: \text{embeddings}, \; \theta_2: \text{the layers above} $$

    Args:
        model, inner_lr, steps, order, objective, batchnorm: as in `maml`; for example the model `models.rating_mlp`.
        decision: patterns of the parameters that adapt.

    Example:
        >>> learner = melu(kshot.models.rating_mlp(3, 0, hidden=(4,)), inner_lr=0.1)
        >>> list(learner.adaptable_params())
        ['head.weight', 'head.bias', 'body.0.weight', 'body.0.bias']

    References:
        Lee, Im, Jang, Cho, Chung: MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation, KDD 2019,
        arXiv:1908.00413, algorithm 1.

    Deviations:
        Exact by default; the authors' code copies the adapted weights into the model, so that its meta-gradient is of
        first order (`order=1`). Evidence candidates, the items that the paper asks a new user to rate, are not chosen.
    """
    solver = make_solver(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=decision, batchnorm=batchnorm)
