"""MAML and its closest relatives: first-order MAML, Reptile, ANIL and BOIL."""

from __future__ import annotations

from kshot import objectives
from kshot.annotations import DerivativeOrder, FractionBelowOne, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.inner.functional import BatchNorm
from kshot.inner.per_parameter import Pattern, adaptable_params
from kshot.inner.rules import SGD
from kshot.inner.solvers import FirstOrder
from kshot.learners.gradient.gradient_learner import GradientLearner, Rule, make_rule, make_solver
from kshot.learners.gradient.outer_losses import ReptileLoss, TrainOn
from kshot.objectives import Objective
from kshot.supplied import BaseModel


def maml(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Model-agnostic meta-learning: an initialisation from which a few gradient steps solve a new task.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k), \qquad
       \min_{\theta_0} \; \mathbb{E}_{\text{task}} \; L_{\text{query}}(\theta_K) $$

    Args:
        model: any module: inputs (n, ...) to predictions (n, ...).
        inner_lr: $\alpha$, the inner learning rate, above 0.
        steps: $K$, the number of inner steps.
        order: 2 differentiates through the inner steps exactly; 1 is the first-order approximation (FOMAML).
        objective: loss and metrics of the tasks, such as `objectives.classification` or `objectives.mse`.
        adaptable: shell pattern of the parameters that adapt, or several (see `inner.per_parameter.Pattern`).
        batchnorm: "support" (inductive), "query" (transductive, the original code's choice), "running" or "tasknorm".

    Returns:
        A learner; train it with `kshot.fit`, or with any outer optimiser over `learner.parameters()`.

    Raises:
        ValueError: an argument out of bounds, or a pattern that matches nothing.

    Example:
        >>> learner = maml(nn.Linear(1, 1), inner_lr=0.1, objective=objectives.mse)
        >>> state = learner.adapt(kshot.Batch.of(torch.ones(4, 1), torch.ones(4, 1)))
        >>> learner.predict(state, torch.ones(2, 1)).shape
        torch.Size([2, 1])

    References:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400.

    Deviations:
        BatchNorm uses support statistics for the query by default; the paper's code normalises the query by its own,
        so that a prediction depends on the other queries. All parameters adapt by default; in the paper's code the
        shift of BatchNorm, which has no scale there, is shared by all tasks. The outer gradient is not clipped.
    """
    solver = make_solver(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)


def fomaml(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    rule: Rule = "sgd",
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
    minibatch: PositiveInt | None = None,
) -> GradientLearner:
    r"""First-order MAML: MAML whose outer gradient treats the inner gradients as constants.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k), \qquad
       \text{outer gradient } \nabla L_{\text{query}}(\theta_K) $$

    Args:
        model, inner_lr, steps, objective, adaptable, batchnorm: as in `maml`, of which this is `order=1`.
        rule: update rule of the inner steps: "sgd" as above, or "adam" (`inner.rules.Adam`) for large models and many
            steps.
        minibatch: number of support rows in an inner step; None takes all.

    Example:
        >>> fomaml(nn.Linear(1, 1), inner_lr=0.1).solver.steps
        1

    References:
        Finn, Abbeel, Levine, arXiv:1703.03400, section 5.2; Nichol, Achiam, Schulman, arXiv:1803.02999, whose inner
        steps are Adam's.
    """
    solver = FirstOrder(make_rule(rule, inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm, minibatch=minibatch)


def reptile(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 5,
    train_on: TrainOn = "both",
    momentum: FractionBelowOne = 0.0,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
    minibatch: PositiveInt | None = None,
) -> GradientLearner:
    r"""Reptile: move the initialisation towards the end point of gradient descent on each task.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L(\theta_k), \qquad \text{outer gradient } \theta_0 - \theta_K $$

    The reported loss is the query loss at $\theta_K$; its gradient is Reptile's.

    Args:
        model, inner_lr, objective, batchnorm: as in `maml`.
        steps: $K$, 2 or more: with one step this is plain joint training.
        train_on: examples of $L$ in meta-training. "both" is support and query together, as in the paper, which does
            not split training tasks; the reported loss is then a training loss. "support" keeps the query for
            reporting. Adapting to a new task always uses its support set alone.
        momentum: momentum of the inner steps.
        adaptable: the parameters that adapt; the others get no gradient and stay as they are.
        minibatch: number of rows in an inner step; None takes all.

    Returns:
        A learner for the ordinary trainer; with SGD of rate $\epsilon$ as outer optimiser this is the paper's update.

    Raises:
        ValueError: as `maml`, and for an unknown `train_on`.

    Example:
        >>> learner = reptile(nn.Linear(1, 1), inner_lr=0.1, objective=objectives.mse)
        >>> batch = kshot.Batch.of(torch.ones(4, 1), torch.ones(4, 1))
        >>> learner(kshot.Task(batch, batch)).backward()

    References:
        Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, arXiv:1803.02999, section 3.

    Deviations:
        The paper's inner optimiser is Adam with $\beta_1 = 0$; for it, pass a solver with that rule to
        `GradientLearner`.
    """
    return GradientLearner(
        model,
        objective,
        FirstOrder(SGD(inner_lr, momentum=momentum), steps),
        adaptable=adaptable,
        batchnorm=batchnorm,
        outer=ReptileLoss(train_on),
        minibatch=minibatch,
    )


def anil(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    head: str = "head",
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Almost no inner loop: MAML that adapts the head only; all tasks share the meta-learned body.

    $$ \theta^{\text{head}}_{k+1} = \theta^{\text{head}}_k - \alpha \nabla_{\text{head}} L_{\text{support}} $$

    Args:
        model, inner_lr, steps, order, objective, batchnorm: as in `maml`.
        head: qualified name of the submodule that adapts.

    Raises:
        ValueError: as `maml`, or a model without trainable parameters under `head`.

    Example:
        >>> learner = anil(nn.Sequential(nn.Linear(1, 8), nn.Linear(8, 2)), inner_lr=0.1, head="1")
        >>> list(learner.adaptable_params())
        ['1.weight', '1.bias']

    References:
        Raghu et al.: Rapid Learning or Feature Reuse?, ICLR 2020, arXiv:1909.09157.
    """
    solver = make_solver(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=f"{head}.*", batchnorm=batchnorm)


def boil(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    head: str = "head",
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Body only update in the inner loop: MAML that adapts all parameters but those of the head.

    $$ \theta^{\text{body}}_{k+1} = \theta^{\text{body}}_k - \alpha \nabla_{\text{body}} L_{\text{support}} $$

    Args:
        model, inner_lr, steps, order, objective, batchnorm: as in `maml`.
        head: qualified name of the submodule that does not adapt. Its weights must not be zero, or no gradient reaches
            the body.

    Raises:
        ValueError: as `maml`, or a model without parameters under `head`.

    Example:
        >>> learner = boil(nn.Sequential(nn.Linear(1, 8), nn.Linear(8, 2)), inner_lr=0.1, head="1")
        >>> list(learner.adaptable_params())
        ['0.weight', '0.bias']

    References:
        Oh et al.: BOIL: Towards Representation Change for Few-shot Learning, ICLR 2021, arXiv:2008.08882.
    """
    adaptable_params(model, f"{head}.*")  # raises if the model has no such head
    solver = make_solver(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=("*", f"!{head}.*"), batchnorm=batchnorm)
