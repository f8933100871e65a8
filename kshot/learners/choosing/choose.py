"""A learner that chooses, or weighs, plans of adapting from the support set alone.

Shape legend: n support rows, T tasks, P plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from kshot.annotations import FractionBelowOne, NonNegativeInt, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learner import Learner, evaluation_mode, predict_query
from kshot.learners.choosing.descriptors import DESCRIPTORS, describe
from kshot.learners.choosing.gate import Gate
from kshot.learners.pooling.fitted import FittedToTraining
from kshot.objectives import Objective
from kshot.tasks.source import TaskSource, draw
from kshot.types import Batch, Task, Tree, to, tree_leaves, tree_map

Policy = Literal["fixed", "cross_validated", "learned_choice", "learned_weights"]
LEARNED: tuple[Policy, ...] = ("learned_choice", "learned_weights")

FIRST = 1_000_000
"""The first training task that plans are compared on: meta-training begins at 0."""
CHUNK = 16
"""Tasks drawn at once."""
FOLDS = 3
"""Of the cross-validation within a support set, unless the arguments say otherwise."""
MOST_NUMBERS = 2**27
"""Of predictions that are kept to fit the gate; where they are more, as of texts, plans are compared on fewer tasks."""
CAP = 100.0
"""Losses are bounded by this many interquartile ranges above the median, so that a plan that diverges is only bad."""


class Choosing(FittedToTraining):
    """Chooses among plans, see `choose`, which documents the arguments.

    The state is `{"weights": {plan: ()}, "plans": {plan: state}}` of the plans that were taken.

    Attributes:
        among: the plans in alphabetical order, as `names`.
        trained: the names of those that have parameters to train, or of all if none has.
        gate: weighs them by descriptors; None for policies that learn nothing more than their mean losses.
    """

    after_training = True
    mean_losses: Tensor

    def __init__(
        self,
        among: Mapping[str, Learner],
        objective: Objective,
        *,
        policy: Policy,
        folds: int,
        max_plans: int,
        least_weight: float,
        num_tasks: int,
    ) -> None:
        super().__init__(objective)
        self.policy, self.folds, self.max_plans, self.least_weight, self.num_tasks = (
            policy, folds, max_plans, least_weight, num_tasks
        )  # fmt: skip
        self.names = sorted(among)
        self.among = nn.ModuleList(among[name] for name in self.names)
        descriptors = len(DESCRIPTORS) + (len(self.names) + 1 if folds else 0)
        self.gate = Gate(descriptors, len(self.names)) if policy in LEARNED else None
        self.register_buffer("mean_losses", torch.zeros(len(self.names)))
        self.register_buffer("fitted", torch.zeros(()))
        trained = [name for name, plan in self.parts.items() if any(each.requires_grad for each in plan.parameters())]
        self.trained = trained or self.names
        plans = self.parts.values()
        self.transductive, self.ordered, self.causal_queries, self.annealed = (
            any(getattr(plan, name) for plan in plans)
            for name in ("transductive", "ordered", "causal_queries", "annealed")
        )
        self.num_members = min(max_plans, len(self.names)) if policy == "learned_weights" else 1

    @property
    def parts(self) -> dict[str, Learner]:
        """The plans by name."""
        return dict(zip(self.names, cast("Iterable[Learner]", self.among)))

    def forward(self, task: Task) -> Tensor:
        """The mean of the outer losses of the plans that have parameters to train, ()."""
        plans = self.parts
        return torch.stack([plans[name](task) for name in self.trained]).mean()

    def fit_to_training(self, source: TaskSource) -> None:
        """Compare the plans on training tasks, and fit what weighs them by their descriptors."""
        indices = range(FIRST, FIRST + self.num_tasks)
        features, losses, tasks, numbers = list[Tensor](), list[Tensor](), list[Tree](), 0
        with evaluation_mode(self), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for start in range(0, self.num_tasks, CHUNK):
                if numbers > MOST_NUMBERS:
                    break
                for task in to(draw(source, "train", indices[start : start + CHUNK]), self.mean_losses.device):
                    predictions = self._predictions(task)
                    losses.append(self._losses(predictions, task.query))
                    if self.gate is not None:
                        features.append(self.features(task.support))
                        tasks.append((predictions, tuple(task.query)))
                        numbers += sum(leaf.numel() for leaf in tree_leaves(predictions))
            bounded_TP = _bounded(torch.stack(losses))
            self.mean_losses.copy_(bounded_TP.mean(0))
            if self.gate is not None:
                self._fit_gate(torch.stack(features), tasks, torch.stack(losses), bounded_TP)
        self.fitted.fill_(1.0)

    def _fit_gate(self, features_TD: Tensor, tasks: list[Tree], loss_TP: Tensor, bounded_TP: Tensor) -> None:
        """Fit the gate to the losses of mixtures, in which a plan whose loss was bounded adds the bound."""
        assert self.gate is not None
        bound_TP = torch.where(loss_TP == bounded_TP, 0.0, bounded_TP).float()
        of_tasks = list[Tree]()
        for (predictions, query), bound_P, best in zip(tasks, bound_TP, bounded_TP.argmin(1)):
            usable = [predictions[best] if bound > 0 else each for each, bound in zip(predictions, bound_P)]
            of_tasks.append((usable, query, bound_P.to(self.mean_losses.device)))

        def loss(weight_P: Tensor, task: Tree) -> Tensor:
            predictions, query, bound_P = task
            mixture = mixed(self.objective, predictions, list(weight_P))
            return self.objective.loss(mixture, Batch(*query)) + (weight_P * bound_P).sum()

        usable_T = (bound_TP == 0).any(1)
        kept = [task for task, usable in zip(of_tasks, usable_T) if usable]
        if kept:
            self.gate.fit(features_TD[usable_T], kept, loss)

    def _predictions(self, task: Task) -> list[Tree]:
        """What each plan predicts for the queries after it has adapted to a task."""
        return [predict_query(plan, plan.adapt(task.support), task.query) for plan in self.parts.values()]

    def _losses(self, predictions: Sequence[Tree], query: Batch) -> Tensor:
        return torch.stack([self.objective.loss(each, query) for each in predictions]).detach().double().cpu()

    def losses(self, task: Task) -> Tensor:
        """The query loss of each plan after it has adapted to a task, float64 (P,), on the CPU."""
        return self._losses(self._predictions(task), task.query)

    def features(self, support: Batch) -> Tensor:
        """The descriptors of a support set that the learned policies read, float32, on the CPU."""
        found = torch.from_numpy(describe(support, classes=self.objective.classifies))
        if self.folds:
            errors = self.cross_validate(support)
            found = torch.cat([found, errors - errors.mean(), errors.mean()[None]])
        return found.float()

    def cross_validate(self, support: Batch) -> Tensor:
        """The mean loss of each plan on rows that it was not adapted to, (P,); NaN if there are too few rows.

        Rows are dealt to `folds` folds by class and content, so that their order has no effect.
        """
        fold_n = folds_of(support, self.folds or FOLDS, classes=self.objective.classifies)
        if fold_n is None:
            return torch.full((len(self.names),), torch.nan, dtype=torch.float64)
        total = torch.zeros(len(self.names), dtype=torch.float64)
        for fold in range(int(fold_n.max()) + 1):
            held = fold_n == fold
            kept = support._replace(weight=torch.where(held, 0.0, support.weight))
            total += self.losses(Task(kept, support.rows(held))) * int(held.sum())
        return total / int((fold_n >= 0).sum())

    @torch.no_grad()
    def weigh(self, support: Batch) -> Tensor:
        """The weights of the plans for a support set, (P,), on the CPU; of plans that are not taken, 0."""
        if self.policy in LEARNED and self.gate is not None:
            weight_P = self.gate(self.features(support)[None])[0].double().cpu()
            return self._largest(weight_P, 1 if self.policy == "learned_choice" else self.max_plans)
        single = self.mean_losses.cpu().double()
        if self.policy == "cross_validated":
            errors = self.cross_validate(support).nan_to_num(torch.inf)
            single = errors if bool(errors.isfinite().any()) else single
        return nn.functional.one_hot(single.argmin(), len(self.names)).double()

    def _largest(self, weight_P: Tensor, count: int) -> Tensor:
        """The largest weights, at most `count`, without those below the least, scaled to the sum 1; the others 0."""
        order_P = weight_P.argsort(descending=True, stable=True)
        taken = [place for place in order_P[:count] if weight_P[place] >= self.least_weight] or order_P[:1]
        kept_P = torch.zeros_like(weight_P)
        for place in taken:
            kept_P[place] = weight_P[place]
        return kept_P / kept_P.sum()

    def _adapt(self, support: Batch) -> Tree:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise ValueError(
                "choose adapts to one task at a time, since which plans run depends on the values of its support set: "
                "call it outside vmap; meta-training needs no adaptation of choose itself"
            )
        weights = dict(zip(self.names, self.weigh(support)))
        taken = {name: weight for name, weight in weights.items() if weight > 0}
        like = support.weight
        return {
            "weights": {name: weight.to(like.device, like.dtype) for name, weight in taken.items()},
            "plans": {name: plan.adapt(support) for name, plan in self.parts.items() if name in taken},
        }

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        weights, plans = state["weights"], state.get("plans", {})
        predictions = [self.parts[name].predict(plans.get(name, {}), inputs) for name in sorted(weights)]
        return mixed(self.objective, predictions, [weights[name] for name in sorted(weights)])

    def oracle(self, support: Batch, judge: Batch) -> Tree:
        """The state of the plan that loses least on `judge`, examples of the same task; for measuring only.

        Judge it on other examples than it was chosen by, or it is better than any plan by luck.
        """
        best = int(self.losses(Task(support, judge)).nan_to_num(torch.inf).argmin())
        name = self.names[best]
        return {"weights": {name: support.weight.new_ones(())}, "plans": {name: self.parts[name].adapt(support)}}


def mixed(objective: Objective, predictions: Sequence[Tree], weights: Sequence[Tensor]) -> Tree:
    r"""The mixture of predictions under weights that sum to 1, in the form that the objective takes.

    Classes and tokens: $\log \sum_p w_p \, \mathrm{softmax}(\hat y_p)$; labels: the logit of $\sum_p w_p
    \sigma(\hat y_p)$; values: $\sum_p w_p \hat y_p$; distributions: mean and standard deviation of the mixture. A
    single prediction is returned as it is.

    Example:
        >>> logits = [torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 100.0]])]
        >>> mixed(kshot.objectives.classification, logits, [torch.tensor(0.5)] * 2).exp()
        tensor([[0.2500, 0.7500]])
    """
    if len(predictions) == 1:
        return predictions[0]

    def total(trees: Sequence[Tree]) -> Tree:
        return tree_map(lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves)), *trees)

    if objective.predicts in ("classes", "tokens", "masks"):
        axis = 1 if objective.predicts == "masks" else -1
        logs = torch.stack([each.log_softmax(axis) + weight.log() for each, weight in zip(predictions, weights)])
        return logs.logsumexp(0).clamp_min(torch.finfo(logs.dtype).min)
    if objective.predicts == "labels":
        return torch.logit(total([each.sigmoid() for each in predictions]), eps=1e-7)
    if objective.predicts == "distribution":
        mean = total([each["mean"] for each in predictions])
        variance = total([each["std"].square() + (each["mean"] - mean).square() for each in predictions])
        return {"mean": mean, "std": variance.sqrt()}
    return total(predictions)


def folds_of(support: Batch, most: int, *, classes: bool) -> Tensor | None:
    """The fold of each row (n,), -1 for rows of weight 0; None if fewer than two rows, or one of a class, are there.

    There are `most` folds, or as many as there are rows (of the smallest class) if these are fewer.
    """
    real_n = support.weight > 0
    target_nD = support.targets.detach().reshape(len(real_n), -1).double().cpu().numpy()
    class_n = target_nD.argmax(1) if classes else np.zeros(len(target_nD), np.int64)
    rows = np.flatnonzero(real_n.cpu().numpy())
    count = np.unique(class_n[rows], return_counts=True)[1]
    folds = min(most, int(count.min(initial=len(rows))))
    if folds < 2:
        return None
    inputs = [leaf.detach().reshape(len(leaf), -1).double().cpu().numpy() for leaf in tree_leaves(support.inputs)]
    keys = [key for leaf in inputs for key in (leaf.sum(1), leaf @ np.sqrt(np.arange(1, leaf.shape[1] + 1)))]
    order = np.lexsort([key[rows] for key in (*keys, *target_nD.T, class_n)])
    fold_n = np.full(len(real_n), -1)
    fold_n[rows[order]] = np.arange(len(rows)) % folds
    return torch.from_numpy(fold_n).to(real_n.device)


def _bounded(losses_TP: Tensor) -> Tensor:
    """Losses with those that are not finite, or far above the others, replaced by an upper bound."""
    finite = losses_TP[losses_TP.isfinite()]
    if not len(finite):
        return torch.zeros_like(losses_TP)
    low, middle, high = finite.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=finite.dtype))
    bound = middle + CAP * (high - low)
    return losses_TP.nan_to_num(torch.inf, torch.inf).clamp_max(max(bound, finite.min()))


def check_parts(among: Mapping[str, Learner], what: str, part: str) -> None:
    """Raise ValueError unless `among` names two learners or more, without "/", of one objective."""
    if len(among) < 2:
        raise ValueError(f"{what} needs at least two {part}s in `among`, got {', '.join(among) or 'none'}")
    for name, learner in among.items():
        if not name or "/" in name:
            raise ValueError(f"the name of a {part} must be text without '/', got {name!r}")
        if not isinstance(learner, Learner):
            raise ValueError(f"{part} {name!r} must be a learner, got a {type(learner).__name__}")
    (first, one), *others = among.items()
    for name, other in others:
        if other.objective != one.objective:
            raise ValueError(
                f"{part}s must share an objective: {first!r} has {one.objective.name}, {name!r} {other.objective.name}"
            )


@check_arguments
def choose(
    among: Mapping[str, Learner],
    *,
    policy: Policy = "learned_weights",
    folds: NonNegativeInt = 0,
    max_plans: PositiveInt = 3,
    least_weight: FractionBelowOne = 0.2,
    num_tasks: PositiveInt = 500,
) -> Choosing:
    r"""Choose among plans of adapting, or weigh them, from the support set alone.

    $$ \hat y = \sum_p w_p(\text{support}) \, \hat y_p, \qquad \sum_p w_p = 1 $$

    A plan is any learner: another algorithm, or the same with other steps, rates or adaptable parameters. Once the
    plans are trained, all of them adapt to training tasks, and a small network is fitted that gives the weights from
    `describe(support)`: sizes, statistics of the targets, and errors of simple fits for rows that are left out. It
    minimises the query loss of the mixture. Then only the plans that are taken adapt to a new task. Predictions are
    mixed as probabilities of classes, means of values, and mixtures of distributions.

    Meta-training minimises the mean of the plans' outer losses. Plans may share a model, and in a run file those that
    adapt the run's model do. `training.fit` and runs fit what chooses after the training, a run after each round;
    `training.fit_closed_form(learner, source)` does so for plans that are not trained. Until then plans count as equal.

    Args:
        among: name to plan, two or more, of one objective.
        policy: "fixed" takes the plan that is best in the mean over training tasks; "cross_validated" that which is
            best in a cross-validation within the support set, where it has enough rows; "learned_weights" weighs
            plans by their descriptors; "learned_choice" takes the plan of the largest weight.
        folds: of a cross-validation within the support set: 3 for "cross_validated" if this is 0. The learned policies
            read the errors of all plans in it if it is not 0, so that adapting costs `folds` times all plans.
        max_plans: the most plans that are weighed; others get the weight 0, and do not run.
        least_weight: so do plans of less weight.
        num_tasks: number of training tasks on which plans are compared. A plan that has memorised the training classes
            looks better on them than it is.

    Returns:
        A learner for tasks of any kind that all plans take.

    Raises:
        ValueError: fewer than two plans, a name with "/", plans of different objectives, or an objective whose
            predictions cannot be mixed, with a learned policy; when adapting, a call under `vmap`.

    Example:
        >>> from kshot.learners.baselines.regressors import neighbours, ridge
        >>> learner = choose({"near": neighbours(1), "line": ridge(0.1)}, policy="learned_choice", num_tasks=20)
        >>> kshot.training.fit_closed_form(learner, kshot.sources.sinusoids())
        True
        >>> state = learner.adapt(kshot.sources.sinusoids().task("test", 0).support)
        >>> list(state["weights"])
        ['near']

    References:
        Rice: The algorithm selection problem, Advances in Computers 15, 1976. Montero-Manso, Athanasopoulos, Hyndman,
        Talagala: FFORMA, International Journal of Forecasting 36, 2020 (weights learned from features of a series).

    Deviations:
        FFORMA learns the weights by boosted trees, and minimises the weighted mean of the losses; here a perceptron
        minimises the loss of the mixture.
    """
    check_parts(among, "choose", "plan")
    plan = next(iter(among.values()))
    if policy in LEARNED and plan.objective.predicts is None:
        raise ValueError(
            "the objective does not say what it `predicts`, so that predictions cannot be mixed: take policy fixed or "
            "cross_validated"
        )
    return Choosing(
        among, plan.objective,
        policy=policy, folds=folds, max_plans=max_plans, least_weight=least_weight, num_tasks=num_tasks,
    )  # fmt: skip
