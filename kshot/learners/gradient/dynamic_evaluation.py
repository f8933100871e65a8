"""Learners that read a text in order: what came before a window is its context, and each window read is learned from.

Shape legend: n windows, L symbols of a window, c windows of context, V symbols of the vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeInt, PositiveFloat
from kshot.inner.per_parameter import Pattern, adaptable_params
from kshot.inner.rates import LearnedRate
from kshot.inner.solvers import InnerSolver
from kshot.learners.gradient.maml import GradientLearner, Rule, of_order, rule_of
from kshot.objectives import Objective
from kshot.types import Batch, Tree

Rates = Literal["one", "tensor", "element"]
"""Learning rates: one that is given, or one learned for each tensor or for each element."""

IGNORED = -100  # the target of a symbol that is not scored


class Reader(GradientLearner):
    r"""Reads the support a window after another, a gradient step at each; see `dynamic_evaluation`.

    The state is `{"params": {name: tensor}, "tail": (c L,)}`, the latter the symbols read last.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        solver: InnerSolver,
        *,
        adaptable: Pattern,
        context_windows: int,
        passes: int,
        causal_queries: bool,
    ) -> None:
        super().__init__(model, objective, solver, adaptable=adaptable, minibatch=1)
        for name, count in (("context_windows", context_windows), ("passes", passes)):
            if count < 0:
                raise ValueError(f"{name} must be at least 0, got {count}")
        self.context_windows, self.passes, self.causal_queries = context_windows, passes, causal_queries
        self.transductive = causal_queries

    def _adapt(self, support: Batch, *, steps: int | None = None) -> Tree:
        longer, tail = self._read(support)
        return super()._adapt(longer, steps=self._steps(support, steps)) | {"tail": tail}

    def trajectory(self, support: Batch, *, steps: int | None = None) -> list[Tree]:
        longer, tail = self._read(support)
        return [state | {"tail": tail} for state in super().trajectory(longer, steps=self._steps(support, steps))]

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        length = inputs.shape[1]
        if not self.causal_queries:
            tail = state["tail"].expand(len(inputs), -1)
            return super().predict(state, torch.cat([tail, inputs], 1))[:, -length:]
        params, tail, told = state["params"], state["tail"], []
        for window in inputs.unbind(0):
            longer = torch.cat([tail, window])[None]  # (1, (c + 1) L)
            told.append(super().predict({"params": params}, longer)[0, -length:])
            # What a window shows of its own text: the symbol after each but the last.
            following = torch.cat([window[1:], window.new_full((1,), IGNORED)])
            params = self.solver(self._loss, params, [(self._turn(longer, following), 0, None)])
            tail = longer[0, -len(tail) :] if len(tail) else tail
        return torch.stack(told)

    def _read(self, support: Batch) -> tuple[Batch, Tensor]:
        """The support's windows, each behind the c before it, (n, (c + 1) L); and the last c of all, (c L,)."""
        length = support.inputs.shape[1]
        tail, longer = support.inputs.new_zeros(self.context_windows * length), []
        for window, weight in zip(support.inputs.unbind(0), support.weight.unbind(0)):
            longer.append(torch.cat([tail, window]))
            tail = torch.where(weight > 0, longer[-1][length:], tail)
        before = support.targets.new_full((len(longer), len(tail)), IGNORED)
        return Batch(torch.stack(longer), torch.cat([before, support.targets], 1), support.weight), tail

    def _turn(self, longer: Tensor, following: Tensor) -> Batch:
        before = following.new_full((longer.shape[1] - len(following),), IGNORED)
        like = next(self.model.parameters())
        return Batch(longer, torch.cat([before, following])[None], torch.ones(1, dtype=like.dtype, device=like.device))

    def _steps(self, support: Batch, steps: int | None) -> int:
        return self.passes * len(support.weight) if steps is None else steps


def dynamic_evaluation(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    passes: NonNegativeInt = 1,
    context_windows: NonNegativeInt = 1,
    causal_queries: bool = True,
    rates: Rates = "tensor",
    rule: Rule = "sgd",
    order: DerivativeOrder = 1,
    adaptable: Pattern = "*",
    objective: Objective = objectives.next_token,
) -> Reader:
    r"""Dynamic evaluation: a language model that learns from a text while it reads on, its weights meta-learned.

    $$ \theta_{i+1} = \theta_i - \alpha \odot \nabla L(x_i \mid x_{i-c} \dots x_{i-1}; \theta_i), \qquad
       \min_{\theta_0, \alpha} \; \mathbb{E}_{\text{task}} \sum_{i \in \text{query}}
       L(x_i \mid x_{i-c} \dots x_{i-1}; \theta_i) $$

    over the windows $x_i$ of a text in order, the support's first. Each is predicted before it is learned from, and
    read behind the c windows before it.

    Args:
        model: symbols (n, L) to logits (n, L, V), causal, for texts of (c + 1) L symbols.
        inner_lr: the rate $\alpha$, or from where the learned ones start.
        passes: how often the support is read; 0 takes no step on it: with `causal_queries=False` the support is context
            alone.
        context_windows: c, windows that are read before each.
        causal_queries: whether it goes on learning in the query, which is then a text in order, each window predicted
            from those
            before it: **transductive**, since a prediction depends on other queries. If not, each query window is
            predicted by itself, behind the last c windows of the support.
        rates: "one" is `inner_lr`; "tensor" and "element" learn one for each tensor, or for each number of it.
        rule: of the steps: "sgd" as above, or "adam", whose moments begin anew with each window of the query.
        order: 1 counts the gradients of the steps as constants; 2 is exact.
        adaptable: the parameters that adapt, as in `maml`.
        objective: what the tasks ask.

    Returns:
        A learner for `kshot.sources.corpus` with `order="given"`.

    Raises:
        ValueError: as `maml`; passes or context below 0.

    Example:
        >>> learner = dynamic_evaluation(kshot.models.language_model(symbols=12, width=8), inner_lr=0.1)
        >>> text = Batch.of(torch.ones(3, 5).long(), torch.ones(3, 5).long())
        >>> learner.predict(learner.adapt(text), text.inputs).shape
        torch.Size([3, 5, 12])

    References:
        Krause, Kahembwe, Murray, Renals: Dynamic Evaluation of Neural Sequence Models, ICML 2018, arXiv:1709.07432.

    Deviations:
        Learned rates take the place of the paper's division by gradients' mean squares, and nothing draws the weights
        back. Windows before are read anew, in place of a state that is carried on, so that any causal model will do.
    """
    if rates not in ("one", "tensor", "element"):
        raise ValueError(f"rates must be one, tensor or element, got {rates!r}")
    rate: Any = inner_lr if rates == "one" else LearnedRate(adaptable_params(model, adaptable), inner_lr, per=rates)
    solver = of_order(order, rule_of(rule, rate), 1)
    return Reader(
        model,
        objective,
        solver,
        adaptable=adaptable,
        context_windows=context_windows,
        passes=passes,
        causal_queries=causal_queries,
    )
