"""Dynamic evaluation: a language model that takes a gradient step on each window of a text after reading it.

Shape legend: n windows, L symbols of a window, c windows of context, V symbols of the vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeInt, PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.per_parameter import LearnedRate, Pattern, adaptable_params
from kshot.inner.solvers import InnerSolver
from kshot.learners.gradient.gradient_learner import GradientLearner, Rule, make_rule, make_solver
from kshot.objectives import Objective
from kshot.query_weight import current_query_weight
from kshot.supplied import BaseModel, ContextWindows
from kshot.types import Batch, Tree

Rates = Literal["one", "tensor", "element"]
"""Learning rates: a fixed one, or a learned one for each tensor or each element."""

IGNORED = -100  # target of a symbol that is not scored


class Reader(GradientLearner):
    r"""Reads the windows of the support in order, with a gradient step on each; see `dynamic_evaluation`.

    The state is `{"params": {name: tensor}, "tail": (c L,)}`; "tail" holds the last c L symbols read.
    """

    @check_arguments
    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        solver: InnerSolver,
        *,
        adaptable: Pattern,
        context_windows: NonNegativeInt,
        passes: NonNegativeInt,
        causal_queries: bool,
    ) -> None:
        super().__init__(model, objective, solver, adaptable=adaptable, minibatch=1)
        self.context_windows, self.passes, self.causal_queries = context_windows, passes, causal_queries
        self.transductive = causal_queries

    @property
    def inner_settings(self) -> dict[str, Any]:
        """The `order` alone: the number of steps is that of the windows."""
        return {name: value for name, value in super().inner_settings.items() if name != "steps"}

    def _adapt(self, support: Batch, *, steps: int | None = None) -> Tree:
        extended, tail = self._prepend_context(support)
        return super()._adapt(extended, steps=self._num_steps(support, steps)) | {"tail": tail}

    def trajectory(self, support: Batch, *, steps: int | None = None) -> list[Tree]:
        extended, tail = self._prepend_context(support)
        return [state | {"tail": tail} for state in super().trajectory(extended, steps=self._num_steps(support, steps))]

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        length = inputs.shape[1]
        if not self.causal_queries:
            tail = state["tail"].expand(len(inputs), -1)
            return super().predict(state, torch.cat([tail, inputs], 1))[:, -length:]
        params, buffers, tail, predictions = state["params"], state.get("buffers", {}), state["tail"], []
        weights = current_query_weight(len(inputs), like=next(self.model.parameters()))
        for window, weight in zip(inputs.unbind(0), weights.unbind(0)):
            extended = torch.cat([tail, window])[None]  # (1, (c + 1) L)
            predictions.append(super().predict({"params": params, "buffers": buffers}, extended)[0, -length:])
            # The known targets of a window: the next symbol of each position but the last.
            targets = torch.cat([window[1:], window.new_full((1,), IGNORED)])
            step = (_window_batch(extended, targets, weight), 0, None)
            params, buffers = self.solver.stateful_trajectory(self._loss, params, buffers, [step])[-1]
            tail = torch.where(weight > 0, extended[0, -len(tail) :], tail) if len(tail) else tail
        return torch.stack(predictions)

    def _prepend_context(self, support: Batch) -> tuple[Batch, Tensor]:
        """Each support window after the c windows before it, (n, (c + 1) L), and the last c windows, (c L,)."""
        length = support.inputs.shape[1]
        tail, extended = support.inputs.new_zeros(self.context_windows * length), []
        for window, weight in zip(support.inputs.unbind(0), support.weight.unbind(0)):
            extended.append(torch.cat([tail, window]))
            tail = torch.where(weight > 0, extended[-1][length:], tail)
        ignored = support.targets.new_full((len(extended), len(tail)), IGNORED)
        return Batch(torch.stack(extended), torch.cat([ignored, support.targets], 1), support.weight), tail

    def _num_steps(self, support: Batch, steps: int | None) -> int:
        return self.passes * len(support.weight) if steps is None else steps


def _window_batch(extended: Tensor, targets: Tensor, weight: Tensor) -> Batch:
    """One window (L,) of targets with the windows before it, (1, (c + 1) L), and its weight, ()."""
    ignored = targets.new_full((extended.shape[1] - len(targets),), IGNORED)
    return Batch(extended, torch.cat([ignored, targets])[None], weight[None])


@check_arguments
def dynamic_evaluation(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    passes: NonNegativeInt = 1,
    context_windows: ContextWindows = 1,
    causal_queries: bool = True,
    rates: Rates = "tensor",
    rule: Rule = "sgd",
    order: DerivativeOrder = 1,
    adaptable: Pattern = "*",
    objective: Objective = objectives.next_token,
) -> Reader:
    r"""Dynamic evaluation: a language model that learns from a text while it reads it, its weights meta-learned.

    $$ \theta_{i+1} = \theta_i - \alpha \odot \nabla L(x_i \mid x_{i-c} \dots x_{i-1}; \theta_i), \qquad
       \min_{\theta_0, \alpha} \; \mathbb{E}_{\text{task}} \sum_{i \in \text{query}}
       L(x_i \mid x_{i-c} \dots x_{i-1}; \theta_i) $$

    over the windows $x_i$ of a text in order, those of the support first. Each window is predicted before it is trained
    on, with the c windows before it as context.

    Args:
        model: symbols (n, L) to logits (n, L, V), causal, for texts of (c + 1) L symbols.
        inner_lr: the rate $\alpha$, or the initial value of learned rates.
        passes: number of passes over the support; 0 takes no step on it, so that with `causal_queries=False` it serves
            as context alone.
        context_windows: c, number of context windows before each.
        causal_queries: whether to go on learning in the query, which is then a text in order, each window predicted
            from those before it. This is **transductive**, since a prediction depends on other queries. If False, each
            query window is predicted independently, after the last c windows of the support.
        rates: "one" is a fixed rate, `inner_lr`; "tensor" and "element" learn a rate for each tensor or each element.
        rule: update rule of the steps: "sgd" as above, or "adam", whose moments restart at each window of the query.
            Under "adam" a support window of weight 0 is a step too, by the moments of the windows before it.
        order: 1 treats the gradients of the steps as constants; 2 is exact.
        adaptable: the parameters that adapt, as in `maml`.
        objective: loss and metrics of the tasks.

    Returns:
        A learner for `kshot.sources.corpus` with `order="given"`.

    Example:
        >>> learner = dynamic_evaluation(kshot.models.language_model(symbols=12, width=8), inner_lr=0.1)
        >>> text = Batch.of(torch.ones(3, 5).long(), torch.ones(3, 5).long())
        >>> learner.predict(learner.adapt(text), text.inputs).shape
        torch.Size([3, 5, 12])

    References:
        Krause, Kahembwe, Murray, Renals: Dynamic Evaluation of Neural Sequence Models, ICML 2018, arXiv:1709.07432.

    Deviations:
        Learned rates replace the paper's division by mean squared gradients, and there is no decay towards the initial
        weights. Context windows are read again, rather than a recurrent state carried on, so that any causal model
        serves.
    """
    rate: Any = inner_lr if rates == "one" else LearnedRate(adaptable_params(model, adaptable), inner_lr, per=rates)
    solver = make_solver(order, make_rule(rule, rate), 1)
    options: dict[str, Any] = {"context_windows": context_windows, "passes": passes, "causal_queries": causal_queries}
    return Reader(model, objective, solver, adaptable=adaptable, **options)
