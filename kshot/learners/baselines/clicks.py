"""Baselines for clicks: popularity, item cosine, implicit ALS and EASE, fitted to the training clicks in closed form.

Each ranks items by a score from the clicks of the support set; sampled items without a click say next to nothing, and
none uses them. The score becomes the log-odds of a click by a line fitted to held-out training users (Platt scaling),
so that the log loss is that of a calibrated method; the line rises, so that it changes no ranking.

Shape legend: I items, number 0 standing for those without training clicks; U users, D factors, N support rows, M query
rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import NonNegativeFloat, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learner import Learner
from kshot.learners.baselines.ratings import Ratings
from kshot.objectives import Objective
from kshot.sources.ratings.factors import implicit_factors, spectrum_of
from kshot.sources.ratings.tasks import RatingTasks, ratings_of
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Task, Tree

CALIBRATION_TASKS = 300  # training tasks from which those of held-out users are taken for the Platt scaling
HELD_OUT = 5  # one training user of this many is held out for it
TIE = 1e-5  # weight of popularity, from 0 to 1, by which ties are broken


class ClickRecommender(Learner, ABC):
    r"""Log-odds $a + b \, s_i$ of a click from a score $s_i$ of an item that a subclass defines.

    The state is `{"items": (N,), "clicks": (N,)}`, the support's items, and their weights if clicked, else 0.

    Args:
        objective: `objectives.levels` of two levels.
        counts: (I + 1,), number of training clicks of each item.
    """

    popularity: Tensor

    def __init__(self, objective: Objective, counts: np.ndarray) -> None:
        super().__init__(objective)
        popularity = np.log1p(counts) / max(np.log1p(counts).max(), 1.0)
        self.register_buffer("popularity", torch.from_numpy(popularity).float())
        self.slope, self.intercept = 1.0, 0.0

    def _adapt(self, support: Batch) -> Tree:
        items = support.inputs["item"]
        return {"items": items, "clicks": support.weight * support.targets[:, 1] * (items > 0)}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        items = inputs["item"]
        score = self.score(state, items) + TIE * self.popularity[items]
        return torch.stack([torch.zeros_like(score), self.intercept + self.slope * score], 1)

    @abstractmethod
    def score(self, state: Tree, items: Tensor) -> Tensor:
        """Scores (M,) of items (M,)."""


class Popularity(ClickRecommender):
    r"""$s_i = \log (1 + n_i)$ with $n_i$ the number of training clicks, scaled to at most 1."""

    def score(self, state: Tree, items: Tensor) -> Tensor:
        return self.popularity[items]


class ItemCosine(ClickRecommender):
    r"""$s_i = \frac1n \sum_j n_{ij} / (\sqrt{n_i n_j} + \lambda)$ over the $n$ clicked items $j$.

    $n_{ij}$ is the number of users who clicked both; an item is no neighbour of its own.
    """

    def __init__(self, objective: Objective, clicks: Any, counts: np.ndarray, *, shrink: float) -> None:
        super().__init__(objective, counts)
        self.clicks, self.counts, self.shrink = clicks, counts, shrink

    def score(self, state: Tree, items: Tensor) -> Tensor:
        queried, clicked = items.cpu().numpy(), state["items"].cpu().numpy()
        both = (self.clicks[queried] @ self.clicks[clicked].T).toarray()
        lengths = np.sqrt(self.counts[queried][:, None] * self.counts[clicked]) + self.shrink
        cosine = torch.from_numpy((both / np.maximum(lengths, 1e-9)).astype(np.float32)).to(items.device)
        cosine = cosine * (items[:, None] != state["items"])
        return cosine @ state["clicks"] / state["clicks"].sum().clamp_min(1)


class ImplicitAls(ClickRecommender):
    r"""$s_i = y_i^\top x$, with the user's factors $x$ folded in:

    $$ x = (Y^\top Y + \alpha \, Y_S^\top Y_S + \lambda I)^{-1} (1 + \alpha) \, Y_S^\top 1 $$

    where $Y_S$ are the factors of the clicked items: clicks have confidence $1 + \alpha$, all other items 1.
    """

    factors: Tensor
    gram: Tensor

    def __init__(
        self, objective: Objective, factors: np.ndarray, counts: np.ndarray, *, alpha: float, l2: float
    ) -> None:
        super().__init__(objective, counts)
        self.register_buffer("factors", torch.from_numpy(factors))
        gram = factors.T @ factors + l2 * np.eye(factors.shape[1])
        self.register_buffer("gram", torch.from_numpy(gram))
        self.alpha = alpha

    def _adapt(self, support: Batch) -> Tree:
        state = super()._adapt(support)
        factors = self.factors[state["items"]]
        clicks = state["clicks"].to(factors.dtype)
        gram = self.gram + self.alpha * (factors.mT * clicks) @ factors
        return state | {"user": torch.linalg.solve(gram, (1 + self.alpha) * clicks @ factors)}

    def score(self, state: Tree, items: Tensor) -> Tensor:
        return (self.factors[items] @ state["user"]).to(self.popularity.dtype)


class Ease(ClickRecommender):
    r"""$s_i = \sum_j B_{ji}$ over the clicked items $j$, with the linear autoencoder $B$ of EASE:

    $$ P = (X^\top X + \lambda I)^{-1}, \qquad B_{ji} = -P_{ji} / P_{ii} \; (i \ne j), \qquad B_{ii} = 0 $$

    From the singular value decomposition $X = U \Sigma Z^\top$, of which $Z$ and $\Sigma$ are shared by all $\lambda$:
    $\lambda P = I - Z \, \mathrm{diag}\bigl(\sigma^2 / (\sigma^2 + \lambda)\bigr) \, Z^\top$.
    """

    directions: Tensor
    filter: Tensor

    def __init__(
        self, objective: Objective, directions: np.ndarray, squares: np.ndarray, counts: np.ndarray, *, l2: float
    ) -> None:
        super().__init__(objective, counts)
        self.register_buffer("directions", torch.from_numpy(directions))
        self.register_buffer("filter", torch.from_numpy((squares / (squares + l2)).astype(np.float32)))

    def score(self, state: Tree, items: Tensor) -> Tensor:
        filtered = self.directions[items] * self.filter
        own = (filtered * self.directions[items]).sum(1)
        itself = (items[:, None] == state["items"]).to(own.dtype) @ state["clicks"]
        user = state["clicks"] @ self.directions[state["items"]]
        return (filtered @ user - itself * own) / (1 - own).clamp_min(1e-6)


def popularity(log: Ratings, objective: Objective) -> Popularity:
    """See `Popularity`.

    Example:
        >>> clicks = Ratings(np.array([0, 1, 1]), np.array([1, 1, 2]), np.ones(3), num_items=3)
        >>> learner = popularity(clicks, kshot.objectives.levels([0, 1], 0.5, 0.5, like=1))
        >>> nothing = Batch({"item": torch.ones(1).long()}, torch.zeros(1, 2), torch.zeros(1))
        >>> learner.predict(learner.adapt(nothing), {"item": torch.tensor([1, 2, 3])})[:, 1].argsort(descending=True)
        tensor([0, 1, 2])
    """
    return Popularity(objective, _counts(log))


@check_arguments
def item_cosine(log: Ratings, objective: Objective, *, shrink: NonNegativeFloat = 10.0) -> ItemCosine:
    r"""See `ItemCosine`; `shrink` is $\lambda$, so that two items with one user in common are not the same.

    References:
        Sarwar, Karypis, Konstan, Riedl: Item-based Collaborative Filtering Recommendation Algorithms, WWW 2001.
    """
    return ItemCosine(objective, log.by_item, _counts(log), shrink=shrink)


@check_arguments
def implicit_als(
    log: Ratings,
    objective: Objective,
    *,
    factors: PositiveInt = 32,
    alpha: PositiveFloat = 10.0,
    l2: PositiveFloat = 1.0,
    rounds: PositiveInt = 8,
    seed: int = 0,
) -> ImplicitAls:
    r"""See `ImplicitAls`; the factors of users and items are fitted in turn, each exactly.

    Args:
        log: training clicks.
        factors: D.
        alpha: $\alpha$; l2: $\lambda$; seed: random seed of the items' initial factors.

    References:
        Hu, Koren, Volinsky: Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008.
    """
    of_items = log.cached(_implicit_factors, factors, alpha, l2, rounds, seed)
    return ImplicitAls(objective, of_items, _counts(log), alpha=alpha, l2=l2)


@check_arguments
def ease(log: Ratings, objective: Objective, *, l2: PositiveFloat = 100.0) -> Ease:
    r"""See `Ease`; `l2` is $\lambda$.

    References:
        Steck: Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019, arXiv:1905.03375.

    Deviations:
        Where there are more than 4,096 users and items, the decomposition has the 1,024 largest singular values.
    """
    directions, squares = log.cached(_decomposed)
    return Ease(objective, directions, squares, _counts(log), l2=l2)


def _decomposed(log: Ratings) -> tuple[np.ndarray, np.ndarray]:
    return spectrum_of(log.by_user, 1024)


def _counts(log: Ratings) -> np.ndarray:
    return np.bincount(log.items, minlength=log.num_items + 1)


def _implicit_factors(log: Ratings, factors: int, alpha: float, l2: float, rounds: int, seed: int) -> np.ndarray:
    return implicit_factors(log.by_user, log.by_item, factors, alpha, l2, rounds, seed)


GRIDS: dict[str, tuple[Callable[..., ClickRecommender], list[dict[str, Any]]]] = {
    "popularity": (popularity, [{}]),
    "item_cosine": (item_cosine, [{"shrink": shrink} for shrink in (0.0, 3.0, 10.0, 30.0, 100.0)]),
    "implicit_als": (
        implicit_als,
        [
            {"factors": factors, "alpha": alpha, "l2": l2}
            for factors, (alpha, l2) in product((8, 32), ((1.0, 10.0), (3.0, 10.0), (3.0, 30.0), (10.0, 30.0)))
        ],
    ),
    "ease": (ease, [{"l2": l2} for l2 in (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)]),
}
"""The baselines of clicks, and the options of each among which validation tasks choose."""


def baselines(source: TaskSource) -> dict[str, Callable[[], list[ClickRecommender]]]:
    """The baselines for tasks of clicks: name -> fits the candidates to the training split; {} for other tasks."""
    tasks = ratings_of(source)
    if tasks is None or tasks.preprocessor.rating is not None:
        return {}
    logs: list[tuple[Ratings, Ratings, list[Task]]] = []  # read once, where a baseline asks for them

    def candidates(kind: str) -> list[ClickRecommender]:
        if not logs:
            with during(source, "training"):
                logs.append(_logs(tasks))
        fit, grid = GRIDS[kind]
        return [_calibrated(partial(fit, objective=tasks.objective, **options), *logs[0]) for options in grid]

    return {kind: partial(candidates, kind) for kind in GRIDS}


def _logs(tasks: RatingTasks) -> tuple[Ratings, Ratings, list[Task]]:
    """All training clicks; those of four users of five; and training tasks of the others."""
    users, items, scores = tasks.training_log()
    num_items = len(tasks.preprocessor.items)
    owners = tasks.users("train", range(CALIBRATION_TASKS))
    rest = users % HELD_OUT != 0
    chosen = [tasks.task("train", index) for index, owner in enumerate(owners.tolist()) if owner % HELD_OUT == 0]
    log = Ratings(users, items, scores, num_items)
    return log, (Ratings(users[rest], items[rest], scores[rest], num_items) if chosen and rest.any() else log), chosen


def _calibrated(
    fit: Callable[[Ratings], ClickRecommender], log: Ratings, most: Ratings, held_out: Sequence[Task]
) -> ClickRecommender:
    """Fit to all clicks, with a line from scores to log-odds fitted to tasks of users left out of most of them."""
    from sklearn.linear_model import LogisticRegression

    trial, learner = fit(most), fit(log)
    scores, clicked = [], []
    for task in held_out:
        real = task.query.weight > 0
        scores.append(trial.predict(trial.adapt(task.support), task.query.inputs)[real, 1])
        clicked.append(task.query.targets[real, 1])
    if scores and 0 < (labels := torch.cat(clicked)).mean() < 1:
        values = torch.cat(scores).double()
        scale = float(values.std()) or 1.0
        line = LogisticRegression(C=1e3).fit((values / scale)[:, None].numpy(), labels.numpy())
        learner.slope = max(float(line.coef_[0, 0]) / scale, 1e-3)
        learner.intercept = float(line.intercept_[0])
    return learner
