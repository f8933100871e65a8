"""Learners that see all queries of a task at once. A figure of theirs is not to be set beside an inductive one.

They are told by `transductive = True`, and every report says so. A query's prediction depends on which others it came
with, so all queries of a task belong into one call of `predict`, and padding does not.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.inner.functional import BatchNorm, Function
from kshot.inner.per_parameter import adaptable_params
from kshot.inner.rules import Adam
from kshot.inner.solvers import InnerSolver
from kshot.learner import Learner
from kshot.learners.gradient.maml import of_order
from kshot.learners.gradient.proto_maml import Headed, PrototypeInit
from kshot.learners.heads.metric import Centred
from kshot.learners.heads.protonet import Head, HeadLearner, class_means, euclidean
from kshot.objectives import Objective, classes_present, only_present
from kshot.types import Batch, Params, Tree


class Laplacian(Head):
    r"""Class means, and labels of the queries that are near their means and like those of their neighbours.

    Args:
        neighbours: $k$, how many a query has.
        smoothness: $\lambda$.
        steps: of the bound optimiser.
    """

    transductive = True

    def __init__(self, neighbours: int, smoothness: float, steps: int) -> None:
        super().__init__()
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {neighbours}")
        if not smoothness >= 0:
            raise ValueError(f"smoothness must be at least 0, got {smoothness}")
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        self.neighbours, self.smoothness, self.steps = neighbours, smoothness, steps

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        present_C = (target_NC * weight_N[:, None]).sum(0) > 0
        return {"prototypes": class_means(feat_ND, target_NC, weight_N), "present": present_C}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        near_MC = only_present(euclidean(feat_MD, state["prototypes"]), state["present"])
        graph_MM = self._graph(feat_MD)
        logit_MC = near_MC
        for _ in range(self.steps):
            logit_MC = near_MC + self.smoothness * graph_MM @ logit_MC.softmax(1)
        return logit_MC

    def _graph(self, feat_MD: Tensor) -> Tensor:
        """1 where a query (row) has another one among its nearest, (M, M)."""
        count = len(feat_MD)
        away_MM = -euclidean(feat_MD, feat_MD).detach() + torch.diag(feat_MD.new_full((count,), torch.inf))
        nearest = away_MM.topk(min(self.neighbours, count - 1), largest=False).indices
        return torch.zeros_like(away_MM).scatter(1, nearest, 1.0)


def laplacian_shot(
    embedding: nn.Module,
    *,
    features: int,
    neighbours: PositiveInt = 3,
    smoothness: NonNegativeFloat = 1.0,
    steps: NonNegativeInt = 20,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""LaplacianShot, transductive: SimpleShot, with labels that are propagated between neighbouring queries.

    $$ \min_{Y} \; \sum_m y_m^\top a_m + \frac\lambda2 \sum_{m, p} w_{mp} \lVert y_m - y_p \rVert^2, \qquad
       y_m \leftarrow \mathrm{softmax}\Bigl(-a_m + \lambda \sum_p w_{mp} y_p\Bigr) $$

    $a_{mc} = \lVert z_m - \bar z_c \rVert^2$ for features $z$ that are centred and of unit length, as in `simpleshot`;
    $w_{mp} = 1$ where p is among the k nearest queries of m, else 0.

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        features: D, how many features that makes for an example.
        neighbours: $k$.
        smoothness: $\lambda$; the paper chooses it on validation tasks.
        steps: how often labels are passed on.
        objective: what the tasks ask.
        batchnorm: "running", "support" or "query".

    Returns:
        A transductive learner for any number of ways and shots. The centre is 0 until `training.fit_feature_statistics`
        measures it.

    Raises:
        ValueError: numbers out of bounds.

    Example:
        >>> learner = laplacian_shot(nn.Flatten(), features=2)
        >>> learner.transductive
        True

    References:
        Ziko, Dolz, Granger, Ben Ayed: Laplacian Regularized Few-Shot Learning, ICML 2020, arXiv:2006.15486.

    Deviations:
        Class means are not rectified by the queries' confident predictions.
    """
    head = Centred(Laplacian(neighbours, smoothness, steps), features)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)


class TransductiveTuner(Learner):
    r"""Tunes a model on a task's support set and, by the entropy of its predictions, on the queries, when they come.

    The state is the support set, for nothing can be done before: `predict` does the work, and costs what adapting does
    elsewhere.

    Args:
        embedding: inputs (n, ...) to features (n, ...); a linear head is made for each task.
        objective: what the tasks ask.
        solver: how the steps are made and differentiated.
        entropy: weight of the queries' entropy.
        batchnorm: which statistics BatchNorm uses for a query.
    """

    transductive = True

    def __init__(
        self, embedding: nn.Module, objective: Objective, solver: InnerSolver, *, entropy: float, batchnorm: BatchNorm
    ) -> None:
        super().__init__(objective)
        if not entropy >= 0:
            raise ValueError(f"entropy must be at least 0, got {entropy}")
        self.model, self.solver, self.head_init, self.entropy = Headed(embedding), solver, PrototypeInit(), entropy
        self.function = Function(self.model, batchnorm)
        self.task_norm = self.function.task_norm

    def _adapt(self, support: Batch) -> Tree:
        return support._asdict()

    def predict(self, state: Tree, inputs: Tree) -> Tensor:
        support = Batch(**state)
        start = adaptable_params(self.model) | self.head_init(self.function, support)
        params = self.solver(self._loss, start, [(support, inputs)] * self.solver.steps)
        return self._predictions(params, support, inputs)[1]

    def _loss(self, params: Params, turn: tuple[Batch, Tree]) -> Tensor:
        of_support, of_query = self._predictions(params, *turn)
        entropy = -(of_query.softmax(1) * of_query.log_softmax(1)).sum(1).mean()
        return self.objective.loss(of_support, turn[0]) + self.entropy * entropy

    def _predictions(self, params: Params, support: Batch, inputs: Tree) -> tuple[Tensor, Tensor]:
        of_support, statistics = self.function.support(params, support)
        of_query = self.function.query(params, statistics, inputs)
        present = classes_present(support)
        return only_present(of_support, present), only_present(of_query, present)


def transductive_fine_tune(
    embedding: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 25,
    entropy: NonNegativeFloat = 1.0,
    order: DerivativeOrder = 1,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> TransductiveTuner:
    r"""Transductive fine-tuning: all weights fit the support set, and are sure of the queries.

    $$ \min_\theta \; L_{\text{support}}(\theta) + \beta \, \frac1M \sum_m H\bigl(p_\theta(y \mid x_m)\bigr) $$

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        inner_lr: rate of Adam.
        steps: gradient steps on support and queries.
        entropy: $\beta$.
        order: 1 differentiates the steps to first order if the learner is meta-trained, 2 exactly.
        objective: what the tasks ask.
        batchnorm: "running", "support" or "query".

    Returns:
        A transductive learner for any number of ways and shots.

    Raises:
        ValueError: as `maml`, or a negative $\beta$.

    Example:
        >>> learner = transductive_fine_tune(nn.Linear(2, 3), inner_lr=0.01, steps=3)
        >>> support = kshot.Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0, 0.0], [0.0, 3.0]])).argmax(1)
        tensor([0, 1])

    References:
        Dhillon, Chaudhari, Ravichandran, Soatto: A Baseline for Few-Shot Image Classification, ICLR 2020,
        arXiv:1909.02729.

    Deviations:
        The head starts as the nearest class mean does (see `proto_maml`) rather than at unit class means, and each step
        sees all examples rather than a support batch and a query batch in turn.
    """
    solver = of_order(order, Adam(inner_lr), steps)
    return TransductiveTuner(embedding, objective, solver, entropy=entropy, batchnorm=batchnorm)
