"""The learner behind all methods that adapt by gradient descent: a model, an objective and an inner solver.

The factories of this package (`maml`, `cavia`, `meta_sgd`, …) only choose these parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from kshot.annotations import DerivativeOrder, NonNegativeInt, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm, Function
from kshot.inner.per_parameter import Pattern, Rate, adaptable_params
from kshot.inner.rules import SGD, Adam, UpdateRule
from kshot.inner.solvers import Annealed, FirstOrder, InnerSolver, Unrolled
from kshot.learner import Learner, query_loss
from kshot.learners.gradient.outer_losses import MultiStepLoss
from kshot.objectives import Objective, classes_present, only_present
from kshot.types import Batch, Params, Task, Tree

Rule = Literal["sgd", "adam"]
"""Name of the update rule of an inner step."""
ORDERS: dict[type[InnerSolver], DerivativeOrder] = {Unrolled: 2, FirstOrder: 1}
"""The order of the derivatives of the solvers that differ in it alone."""


class HeadInit(nn.Module, ABC):
    """Computes initial parameters of a task from its support set, such as a head with one row per class."""

    @abstractmethod
    def forward(self, function: Function, support: Batch) -> Params:
        """Return parameters by name, differentiable, for support leaves (n, ...); `function` calls the model."""


class PerStep(nn.Module, ABC):
    """Parameters that replace the model's own at each inner step and do not adapt."""

    @abstractmethod
    def forward(self, step: int) -> Params:
        """Return parameters by name for the forward pass before step `step`; none where the model's own are used."""


class GradientLearner(Learner):
    r"""Adapts (part of) a model's parameters to the support loss by a solver; predicts with the adapted model.

    $$ \theta_K = \text{solve}(L_{\text{support}}, \theta_0), \qquad \text{predict}(x) = f_{\theta_K}(x) $$

    The state is `{"params": {name: tensor}, "buffers": {name: tensor}, "statistics": {layer: {"mean", "var"}},
    "present": (C,)}`. "buffers" holds those that the model has changed in its forward passes; "statistics" is there
    only for BatchNorm on support statistics, "present" only for task-specific classes.

    Args:
        model: any module that maps the task's inputs to what the objective scores. It is not copied: its parameters are
            the meta-parameters.
        objective: loss and metrics of the tasks.
        solver: solves the inner problem, and defines how its solution is differentiated.
        adaptable: names of the parameters that adapt, as a shell pattern such as "head.*", or several (see
            `inner.per_parameter.Pattern`). The others are shared by all tasks and meta-learned. Parameters with
            `requires_grad=False` neither adapt nor learn.
        batchnorm: statistics that BatchNorm uses for a query (see `inner.functional.BatchNorm`). Inner steps use those
            of the support set, or the running ones.
        head_init: computes further adaptable parameters for each task.
        per_step: parameters that differ between inner steps.
        outer: (learner, task) -> (), the loss that meta-training minimises.
        minibatch: number of rows in an inner step; None takes the whole support set. The j-th of m minibatches has the
            rows j, j + m, j + 2m, …; steps cycle through them, so the order of the support rows matters.
    """

    @check_arguments
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
        outer: Callable[[GradientLearner, Task], Tensor] = query_loss,
        minibatch: PositiveInt | None = None,
    ) -> None:
        super().__init__(objective)
        self.model, self.solver, self.adaptable = model, solver, adaptable
        self.head_init, self.per_step, self.outer, self.minibatch = head_init, per_step, outer, minibatch
        self.function = Function(model, batchnorm)
        self.task_norm = self.function.task_norm
        self.transductive = self.function.transductive
        self.ordered = minibatch is not None
        self.annealed = isinstance(solver, Annealed) or isinstance(outer, MultiStepLoss)
        self.progress = 1.0
        self.adaptable_params()  # raises here, rather than in training, if the pattern matches nothing

    def adaptable_params(self) -> Params:
        """The parameters that adapt, by name, at their meta-learned values."""
        return adaptable_params(self.model, self.adaptable)

    @property
    def inner_settings(self) -> dict[str, Any]:
        """The number of `steps`, unless some parameters belong to single steps, and the `order` of the derivatives, 1
        or 2, if the query loss is differentiated through all steps or none."""
        parts = [self.per_step, *self.solver.rule.modules()]
        of_steps = any(part is not None and getattr(part, "steps", None) is not None for part in parts)
        order = ORDERS.get(type(self.solver)) if self.outer is query_loss else None
        return ({} if of_steps else {"steps": self.solver.steps}) | ({} if order is None else {"order": order})

    @check_arguments
    def set_inner(self, *, steps: NonNegativeInt | None = None, order: DerivativeOrder | None = None) -> None:
        """Set the number of inner steps, or the order of the derivatives; None leaves it."""
        if steps is not None:
            self.solver.steps = steps
        if order is not None:
            self.solver = make_solver(order, self.solver.rule, self.solver.steps).train(self.solver.training)

    def set_progress(self, progress: float) -> None:
        if self.annealed:
            self.progress = progress
        super().set_progress(progress)

    def forward(self, task: Task) -> Tensor:
        """The outer loss of one task, ()."""
        return self.outer(self, task)

    def _adapt(self, support: Batch, *, steps: int | None = None) -> Tree:
        """Adapt to a support set; `steps` overrides the solver's number of inner steps."""
        batches = self._inner_batches(support, steps)
        params, buffers = self._trajectory(support, batches)[-1]
        return self._state(params, buffers, support, len(batches))

    def trajectory(self, support: Batch, *, steps: int | None = None) -> list[Tree]:
        """The states before the first inner step and after each one; arguments as for `adapt`."""
        self._check_support(support)
        points = self._trajectory(support, self._inner_batches(support, steps))
        return [self._state(params, buffers, support, step) for step, (params, buffers) in enumerate(points)]

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        params = state["params"] | state.get("buffers", {})
        output = self.function.query(params, state.get("statistics", {}), inputs)
        return _mask_absent(self.objective.scored(output), state.get("present"))

    def _trajectory(self, support: Batch, batches: list[Any]) -> list[tuple[Params, Params]]:
        """The parameters and the changed buffers before the first inner step and after each one."""
        return self.solver.stateful_trajectory(self._loss, self._initial_params(support), {}, batches)

    def _initial_params(self, support: Batch) -> Params:
        params = self.function.lay_out(self.adaptable_params())
        return params if self.head_init is None else params | self.head_init(self.function, support)

    def _inner_batches(self, support: Batch, steps: int | None) -> list[Any]:
        """The argument of `_loss` for each inner step: rows of the support set, number of the step, classes present."""
        steps, rows = self.solver.steps if steps is None else steps, len(support.weight)
        count = 1 if self.minibatch is None else -(-rows // self.minibatch)
        present = self._present(support)
        parts = [support] if count == 1 else [support.rows(slice(first, None, count)) for first in range(count)]
        return [(parts[step % count], step, present) for step in range(steps)]

    def _loss(
        self, params: Params, buffers: Params, inner_batch: tuple[Batch, int, Tensor | None]
    ) -> tuple[Tensor, Params]:
        batch, step, present = inner_batch
        output, buffers = self.function.adapting(self._params_of_step(params, step), buffers, batch)
        return self.objective.loss(_mask_absent(self.objective.scored(output), present), batch), buffers

    def _state(self, params: Params, buffers: Params, support: Batch, step: int) -> Tree:
        params = self._params_of_step(params, step)
        state: dict[str, Tree] = {"params": params}
        if buffers:
            state["buffers"] = buffers
        if self.function.keeps_statistics and (statistics := self.function.statistics(params | buffers, support)):
            state["statistics"] = statistics
        if self.objective.task_specific_classes:
            state["present"] = self._present(support)
        return state

    def _params_of_step(self, params: Params, step: int) -> Params:
        return params if self.per_step is None else params | self.per_step(step)

    def _present(self, support: Batch) -> Tensor | None:
        return classes_present(support) if self.objective.task_specific_classes else None


def _mask_absent(prediction: Tree, present: Tensor | None) -> Tree:
    if present is None or prediction.shape[-1] != len(present):  # the loss reports a wrong number of logits
        return prediction
    return only_present(prediction, present)


@check_arguments
def make_rule(rule: Rule, inner_lr: Rate) -> UpdateRule:
    """Return the update rule of a name, with learning rate `inner_lr`."""
    return SGD(inner_lr) if rule == "sgd" else Adam(inner_lr)


@check_arguments
def make_solver(order: DerivativeOrder, rule: UpdateRule, steps: int) -> InnerSolver:
    """Return the exact solver for order 2, the first-order approximation for order 1."""
    return (Unrolled if order == 2 else FirstOrder)(rule, steps)
