"""A mixture of trained learners under fixed weights.

Shape legend: P parts of the mixture, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kshot.annotations import NonNegativeFloat
from kshot.argument_checks import check_arguments
from kshot.learner import Learner
from kshot.learners.choosing.choose import check_parts, mixed
from kshot.learners.choosing.gate import stacked
from kshot.objectives import Objective
from kshot.types import Batch, Tree, tree_leaves

STEPS = 100
"""Of L-BFGS, at most, which fits the weights."""


class Mixture(Learner):
    """Mixes what its parts predict, see `mixture`, which documents the arguments.

    The state is `{part: state}`.

    Attributes:
        parts: the learners by name.
        weight_P: their weights, which sum to 1, in the order of `parts`.
    """

    weight_P: Tensor

    def __init__(self, among: Mapping[str, Learner], weights: Mapping[str, float], *, tune: bool) -> None:
        super().__init__(next(iter(among.values())).objective)
        self.names = sorted(among)
        self.among = nn.ModuleList(among[name] for name in self.names)
        weight_P = torch.tensor([float(weights[name]) for name in self.names])
        self.register_buffer("weight_P", weight_P / weight_P.sum())
        self.tune = tune
        self.num_members = len(self.names)

    @property
    def parts(self) -> dict[str, Learner]:
        return dict(zip(self.names, cast("Iterable[Learner]", self.among)))

    # The next three are attributes of other learners; here they are known once a baseline among the parts is fitted.

    @property
    def transductive(self) -> bool:  # type: ignore[override]
        """Whether a part is."""
        return any(part.transductive for part in self.parts.values())

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether a part is."""
        return any(part.ordered for part in self.parts.values())

    @property
    def causal_queries(self) -> bool:  # type: ignore[override]
        """Whether a part is."""
        return any(part.causal_queries for part in self.parts.values())

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Those of the parts if they are tuned, else none."""
        return super().trained_parameters() if self.tune else {}

    def _adapt(self, support: Batch) -> Tree:
        return {name: part.adapt(support) for name, part in self.parts.items()}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        predictions = [part.predict(state.get(name, {}), inputs) for name, part in self.parts.items()]
        return mixed(self.objective, predictions, list(self.weight_P))


def fit_weights(
    objective: Objective,
    predictions: Sequence[Sequence[Tree]],
    queries: Sequence[Batch],
    *,
    shrinkage: NonNegativeFloat = 0.0,
) -> Tensor:
    r"""The weights (P,) that minimise the mean loss of the mixture over tasks and a penalty, as a softmax, by L-BFGS.

    $$ \min_{w \ge 0,\, \sum_p w_p = 1} \; \frac1{T\,s} \sum_t L\Big(\sum_p w_p\, \hat y_{t,p},\; y_t\Big)
       + \lambda P \sum_p \big(w_p - \tfrac1P\big)^2 $$

    with the sum as in `mixed`, and the scale $s$ of the loss: the least mean loss of a part for values, whose loss has
    a unit, and 1 for others. The problem is convex for probabilities of classes with their log loss, and for values
    with the squared error.

    Args:
        predictions: what each part predicts, by task.
        queries: the query set of each task.
        shrinkage: $\lambda$, which draws the weights to equal ones.

    Example:
        >>> targets = torch.tensor([[1.0], [2.0]])
        >>> too_low, too_high = targets - 1, targets + 3
        >>> fit_weights(kshot.objectives.mse, [[too_low, too_high]], [Batch.of(targets, targets)])
        tensor([0.7500, 0.2500])
    """
    stacks = stacked([(list(of_task), tuple(query)) for of_task, query in zip(predictions, queries)])

    def loss(weight_P: Tensor, task: Tree) -> Tensor:
        of_task, query = task
        return objective.loss(mixed(objective, of_task, list(weight_P)), Batch(*query))

    def mean_loss(weight_P: Tensor) -> Tensor:
        return torch.cat([torch.func.vmap(loss, (None, 0))(weight_P, tasks) for _, tasks in stacks]).mean()

    count, device = len(predictions[0]), tree_leaves(predictions[0])[0].device
    scale = 1.0
    if objective.predicts == "values":
        alone = [float(mean_loss(one)) for one in torch.eye(count, device=device)]
        scale = max(min(alone), 1e-6 * max(alone)) or 1.0
    logit_P = torch.zeros(count, requires_grad=True, device=device)
    optimizer = torch.optim.LBFGS([logit_P], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight_P = logit_P.softmax(0)
        penalty = shrinkage * count * (weight_P - 1 / count).square().sum()
        total = mean_loss(weight_P) / scale + penalty
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return logit_P.detach().softmax(0).cpu()


@check_arguments
def mixture(among: Mapping[str, Learner], *, weights: Mapping[str, NonNegativeFloat], tune: bool = False) -> Mixture:
    r"""Mix what trained learners predict, under fixed weights.

    $$ \hat y = \sum_p w_p \, \hat y_p $$

    Probabilities of classes and values are averaged, and distributions mixed. The parts are trained before, as
    `kshot auto` does, which finds the weights on validation tasks; by default training changes nothing in them. In a
    run file a part may have a `model` of its own.

    Args:
        among: name to learner, two or more, of one objective.
        weights: of each, which are divided by their sum.
        tune: whether training changes the parts, together by the loss of the mixture.

    Returns:
        A learner for tasks of any kind that all parts take.

    Raises:
        ValueError: fewer than two parts, other names of weights, weights that are all 0, a name with "/", parts of
            different objectives, or an objective whose predictions cannot be mixed.

    Example:
        >>> from kshot.learners.baselines.regressors import neighbours, ridge
        >>> learner = mixture({"near": neighbours(1), "line": ridge(0.1)}, weights={"near": 3, "line": 1})
        >>> learner.weight_P
        tensor([0.2500, 0.7500])

    References:
        Wolpert: Stacked generalization, Neural Networks 5, 1992. Breiman: Stacked regressions, Machine Learning 24,
        1996 (weights that are not negative).
    """
    check_parts(among, "mixture", "learner")
    if set(weights) != set(among):
        raise ValueError(f"`weights` must name {', '.join(sorted(among))}, got {', '.join(sorted(weights)) or 'none'}")
    if sum(weights.values()) <= 0:
        raise ValueError("`weights` must not all be 0")
    if next(iter(among.values())).objective.predicts is None:
        raise ValueError("the objective does not say what it `predicts`, so that predictions cannot be mixed")
    return Mixture(among, weights, tune=tune)
