"""Learners that adapt by gradient descent: one class over update rules × solvers, and the plainest factories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, FractionBelowOne, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.inner.functional import BatchNorm, Function
from kshot.inner.memory_format import channels_last
from kshot.inner.per_parameter import Pattern, adaptable_params
from kshot.inner.rates import Rate
from kshot.inner.rules import SGD, Adam, UpdateRule
from kshot.inner.solvers import Annealed, FirstOrder, InnerSolver, Unrolled
from kshot.learner import Learner
from kshot.learners.gradient.outer_losses import MultiStepLoss, Outer, ReptileLoss, TrainOn, query_loss
from kshot.objectives import Objective, classes_present, only_present
from kshot.types import Batch, Params, Task, Tree

Rule = Literal["sgd", "adam"]
"""How an inner step moves."""


class HeadInit(nn.Module, ABC):
    """Makes parameters that a task starts from out of its support set, such as a head with one row for each class."""

    @abstractmethod
    def forward(self, function: Function, support: Batch) -> Params:
        """Parameters by name: support leaves (n, ...) in, differentiable. `function` calls the learner's model."""


class PerStep(nn.Module, ABC):
    """Parameters that are other ones at each inner step, and do not adapt. They stand in for the model's own."""

    @abstractmethod
    def forward(self, step: int) -> Params:
        """Parameters by name, for the forward before step `step`; none where the model's own hold."""


class GradientLearner(Learner):
    r"""Adapts (part of) a module's parameters to the support loss by a solver; predicts with the adapted module.

    $$ \theta_K = \text{solve}(L_{\text{support}}, \theta_0), \qquad \text{predict}(x) = f_{\theta_K}(x) $$

    The state is `{"params": {name: tensor}, "statistics": {call: {"mean", "var"}}, "present": (C,)}`; the statistics
    are there for BatchNorm on support statistics only, the classes present where tasks have classes of their own.

    Args:
        model: any module that takes the task's inputs and gives what the objective scores. It is used as it is and
            stays yours: its parameters are the meta-parameters.
        objective: what the tasks ask.
        solver: how the inner problem is solved and differentiated.
        adaptable: names of the parameters that adapt, as a shell pattern such as "head.*", or several (see
            `inner.per_parameter.Pattern`). The others are shared by all tasks, and meta-learned. Parameters with
            `requires_grad=False` neither adapt nor learn.
        batchnorm: which statistics BatchNorm uses for a query (see `inner.functional.BatchNorm`). While adapting it is
            the support set's own, or the running ones.
        start: makes further parameters of each task that adapt.
        per_step: parameters that differ from step to step.
        outer: the loss that meta-training descends.
        minibatch: rows that an inner step sees; None is the whole support set. Of m minibatches the j-th has the rows
            j, j + m, j + 2m, …, and they take turns. With it the order of the support set matters.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        solver: InnerSolver,
        *,
        adaptable: Pattern = "*",
        batchnorm: BatchNorm = "support",
        head_init: HeadInit | None = None,
        per_step: PerStep | None = None,
        outer: Outer = query_loss,
        minibatch: int | None = None,
    ) -> None:
        super().__init__(objective)
        if minibatch is not None and minibatch < 1:
            raise ValueError(f"minibatch must be at least 1 row, or None for the whole support set, got {minibatch}")
        self.model, self.solver, self.adaptable = model, solver, adaptable
        self.head_init, self.per_step, self.outer, self.minibatch = head_init, per_step, outer, minibatch
        self.function = Function(model, batchnorm)
        self.task_norm = self.function.task_norm
        self.transductive = self.function.transductive
        self.ordered = minibatch is not None
        self.annealed = isinstance(solver, Annealed) or isinstance(outer, MultiStepLoss)
        self.progress = 1.0
        self.adaptable_params()  # a pattern that matches nothing is told at once

    def adaptable_params(self) -> Params:
        """The parameters that adapt, by name, at their meta-learned values."""
        return adaptable_params(self.model, self.adaptable)

    def set_progress(self, progress: float) -> None:
        self.progress = progress
        super().set_progress(progress)

    def forward(self, task: Task) -> Tensor:
        """The outer loss of one task, ()."""
        return self.outer(self, task)

    def adapt(self, support: Batch, *, steps: int | None = None) -> Tree:
        """Adapt to a support set; `steps` overrides the solver's number of inner steps."""
        turns = self._inner_batches(support, steps)
        return self._state(self.solver(self._loss, self._begin(support), turns), support, len(turns))

    def trajectory(self, support: Batch, *, steps: int | None = None) -> list[Tree]:
        """The state before the first inner step and after each one; arguments as for `adapt`."""
        way = self.solver.trajectory(self._loss, self._begin(support), self._inner_batches(support, steps))
        return [self._state(params, support, step) for step, params in enumerate(way)]

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        prediction = self.function.query(state["params"], state.get("statistics", {}), inputs)
        return self._of_present(prediction, state.get("present"))

    def _begin(self, support: Batch) -> Params:
        params = channels_last(self.adaptable_params()) if self.function.convolves else self.adaptable_params()
        return params if self.head_init is None else params | self.head_init(self.function, support)

    def _inner_batches(self, support: Batch, steps: int | None) -> list[Any]:
        """What each inner step sees: its rows of the support set, its number, and the classes present."""
        steps, rows = self.solver.steps if steps is None else steps, len(support.weight)
        count = 1 if self.minibatch is None else -(-rows // self.minibatch)
        present = self._present(support)
        parts = [support] if count == 1 else [support.rows(slice(start, None, count)) for start in range(count)]
        return [(parts[k % count], k, present) for k in range(steps)]

    def _loss(self, params: Params, turn: tuple[Batch, int, Tensor | None]) -> Tensor:
        batch, step, present = turn
        prediction = self.function.adapting(self._at(params, step), batch)
        return self.objective.loss(self._of_present(prediction, present), batch)

    def _present(self, support: Batch) -> Tensor | None:
        return classes_present(support) if self.objective.task_specific_classes else None

    def _of_present(self, prediction: Tree, present: Tensor | None) -> Tree:
        if present is None or prediction.shape[-1] != len(present):  # the objective says what is wrong with the latter
            return prediction
        return only_present(prediction, present)

    def _at(self, params: Params, step: int) -> Params:
        return params if self.per_step is None else params | self.per_step(step)

    def _state(self, params: Params, support: Batch, step: int) -> Tree:
        params = self._at(params, step)
        state: dict[str, Tree] = {"params": params}
        if self.function.keeps_statistics:
            _, state["statistics"] = self.function.support(params, support)
        if self.objective.task_specific_classes:
            state["present"] = self._present(support)
        return state


def maml(
    model: nn.Module,
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
        inner_lr: $\alpha$, the inner learning rate.
        steps: $K$, the inner steps.
        order: 2 differentiates through the inner steps exactly; 1 is the first-order approximation (FOMAML).
        objective: what the tasks ask; `objectives.classification` or `objectives.mse`, or your own.
        adaptable: shell pattern of the parameters that adapt, or several (see `inner.per_parameter.Pattern`).
        batchnorm: "support" (inductive), "query" (transductive, the original code's choice) or "running".

    Returns:
        A learner; train it with `kshot.fit`, or with any outer optimiser over `learner.parameters()`.

    Raises:
        ValueError: an order other than 1 or 2, a rate not above 0, a pattern that matches nothing.

    Example:
        >>> import torch
        >>> learner = maml(nn.Linear(1, 1), inner_lr=0.1, objective=objectives.mse)
        >>> state = learner.adapt(Batch.of(torch.ones(4, 1), torch.ones(4, 1)))
        >>> learner.predict(state, torch.ones(2, 1)).shape
        torch.Size([2, 1])

    References:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400.

    Deviations:
        BatchNorm uses support statistics for the query by default; the paper's code normalises the query by its own,
        which lets a prediction see the other queries.
    """
    solver = of_order(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)


def fomaml(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    rule: Rule = "sgd",
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
    minibatch: PositiveInt | None = None,
) -> GradientLearner:
    r"""First-order MAML: MAML whose inner gradients count as constants.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k), \qquad
       \text{outer gradient } \nabla L_{\text{query}}(\theta_K) $$

    Args:
        model, inner_lr, steps, objective, adaptable, batchnorm: as in `maml`, of which this is `order=1`.
        rule: of the inner steps: "sgd" as above, or "adam" (`inner.rules.Adam`), for large models and many steps.
        minibatch: rows that an inner step sees; None is the whole support set.

    Raises:
        ValueError: as `maml`; another rule.

    Example:
        >>> fomaml(nn.Linear(1, 1), inner_lr=0.1).solver.steps
        1

    References:
        Finn, Abbeel, Levine, arXiv:1703.03400, section 5.2; Nichol, Achiam, Schulman, arXiv:1803.02999, whose inner
        steps are Adam's.
    """
    solver = FirstOrder(rule_of(rule, inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm, minibatch=minibatch)


def reptile(
    model: nn.Module,
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
    r"""Reptile: move the initialisation towards where gradient descent on each task ends.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L(\theta_k), \qquad \text{outer gradient } \theta_0 - \theta_K $$

    The loss that is reported is the query loss at $\theta_K$; its gradient is Reptile's.

    Args:
        model, inner_lr, objective, batchnorm: as in `maml`.
        steps: $K$, 2 or more: with one step this is plain joint training.
        train_on: what $L$ is while meta-training. "both" is support and query together, as in the paper, which does
            not part a training task; then the reported loss is a training loss. "support" keeps the query for
            reporting. Adapting to a new task is always on its support.
        momentum: of the inner steps.
        adaptable: the parameters that adapt; the others get no gradient and stay as they are.
        minibatch: rows that an inner step sees; None is all.

    Returns:
        A learner for the ordinary trainer; SGD with rate $\epsilon$ outside is the paper's update.

    Raises:
        ValueError: as `maml`, and for a `train_on` that is neither.

    Example:
        >>> import torch
        >>> learner = reptile(nn.Linear(1, 1), inner_lr=0.1, objective=objectives.mse)
        >>> batch = Batch.of(torch.ones(4, 1), torch.ones(4, 1))
        >>> learner(Task(batch, batch)).backward()

    References:
        Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, arXiv:1803.02999, section 3.

    Deviations:
        The paper's inner optimiser is Adam with $\beta_1 = 0$; pass a solver with it to `GradientLearner`.
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
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    head: str = "head",
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Almost no inner loop: MAML that adapts the head only; the body is shared by all tasks, and meta-learned.

    $$ \theta^{\text{head}}_{k+1} = \theta^{\text{head}}_k - \alpha \nabla_{\text{head}} L_{\text{support}} $$

    Args:
        model, inner_lr, steps, order, objective, batchnorm: as in `maml`.
        head: qualified name of the module that adapts.

    Raises:
        ValueError: as `maml`; also where the model has no trainable parameter under `head`.

    Example:
        >>> learner = anil(nn.Sequential(nn.Linear(1, 8), nn.Linear(8, 2)), inner_lr=0.1, head="1")
        >>> list(learner.adaptable_params())
        ['1.weight', '1.bias']

    References:
        Raghu et al.: Rapid Learning or Feature Reuse?, ICLR 2020, arXiv:1909.09157.
    """
    solver = of_order(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=f"{head}.*", batchnorm=batchnorm)


def melu(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    order: DerivativeOrder = 2,
    decision: Pattern = ("body.*", "head.*"),
    objective: Objective = objectives.mse,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""MeLU: the decision layers adapt to a user, the embeddings of items and users are shared by all.

    $$ \theta_2 \leftarrow \theta_2 - \alpha \nabla_{\theta_2} L_{\text{support}}(\theta_1, \theta_2), \qquad
       \theta_1: \text{embeddings}, \; \theta_2: \text{the layers above} $$

    Args:
        model, inner_lr, steps, objective, batchnorm: as in `maml`; such as `models.rating_mlp`.
        order: 2 is the exact meta-gradient, 1 the first-order approximation.
        decision: patterns of the parameters that adapt.

    Raises:
        ValueError: as `maml`; also where the model has no parameter of such a name.

    Example:
        >>> learner = melu(kshot.models.rating_mlp(3, 0, hidden=(4,)), inner_lr=0.1)
        >>> list(learner.adaptable_params())
        ['head.weight', 'head.bias', 'body.0.weight', 'body.0.bias']

    References:
        Lee, Im, Jang, Cho, Chung: MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation, KDD 2019,
        arXiv:1908.00413, algorithm 1.
    """
    return maml(
        model,
        inner_lr=inner_lr,
        steps=steps,
        order=order,
        objective=objective,
        adaptable=decision,
        batchnorm=batchnorm,
    )


def boil(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 1,
    head: str = "head",
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Body only update in the inner loop: MAML that adapts all but the head.

    $$ \theta^{\text{body}}_{k+1} = \theta^{\text{body}}_k - \alpha \nabla_{\text{body}} L_{\text{support}} $$

    Args:
        model, inner_lr, steps, order, objective, batchnorm: as in `maml`.
        head: qualified name of the module that does not adapt. It must not be zero, or no gradient reaches the body.

    Raises:
        ValueError: as `maml`; also where the model has no parameter under `head`.

    Example:
        >>> learner = boil(nn.Sequential(nn.Linear(1, 8), nn.Linear(8, 2)), inner_lr=0.1, head="1")
        >>> list(learner.adaptable_params())
        ['0.weight', '0.bias']

    References:
        Oh et al.: BOIL: Towards Representation Change for Few-shot Learning, ICLR 2021, arXiv:2008.08882.
    """
    adaptable_params(model, f"{head}.*")
    solver = of_order(order, SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=("*", f"!{head}.*"), batchnorm=batchnorm)


def rule_of(rule: Rule, inner_lr: Rate) -> UpdateRule:
    """The update rule of a name, at a rate."""
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be {' or '.join(get_args(Rule))}, got {rule!r}")
    return SGD(inner_lr) if rule == "sgd" else Adam(inner_lr)


def of_order(order: int, rule: UpdateRule, steps: int) -> InnerSolver:
    """The exact solver for order 2, the first-order approximation for order 1."""
    if order not in (1, 2):
        raise ValueError(f"order must be 2 (exact) or 1 (first-order approximation), got {order!r}")
    return (Unrolled if order == 2 else FirstOrder)(rule, steps)
