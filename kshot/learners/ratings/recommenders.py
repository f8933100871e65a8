"""Recommenders that do no meta-learning, fitted to the training ratings in closed form. What a learner must beat.

A new user is one more row: means are shrunk, factors are folded in. Each is a `Learner`, so that it is scored on the
same tasks by the same code; none has meta-parameters.

Shape legend: n training ratings, I items with number 0 for those not rated in training, D factors, N support rows,
M query rows, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from kshot.learner import Learner
from kshot.learners.ratings.alpaca import posterior
from kshot.objectives import Objective, levels_of
from kshot.types import Batch, Tree

Kind = Literal["global_mean", "user_mean", "item_mean", "bias", "popularity", "item_knn", "matrix_factorisation"]


Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Ratings:
    """Training ratings (n,), the users' numbers from 0 and the items' from 1, and how many items there are."""

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    size: int
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def by_item(self) -> Any:
        """The ratings as a sparse matrix (I + 1, users) of rows."""
        from scipy.sparse import csr_matrix

        shape = (self.size + 1, int(self.users.max()) + 1)
        return csr_matrix((self.scores.astype(np.float32), (self.items, self.users)), shape)

    @cached_property
    def by_user(self) -> Any:
        """The same (users, I + 1)."""
        return self.by_item.T.tocsr()

    def once(self, make: Callable[..., Made], *options: Hashable) -> Made:
        """`make(self, *options)`, kept: recommenders that are tried one after another start from the same."""
        if (make, options) not in self._made:
            self._made[make, options] = make(self, *options)
        return self._made[make, options]


class Recommender(Learner):
    r"""$\hat y = \mu + b_i + b_u$, and what a subclass adds; see `recommender`.

    The state is `{"user": ()}`, the user's shrunk mean residual, and a subclass's.

    Args:
        objective: what the tasks ask, `objectives.rating` or `objectives.levels`.
        offsets: (I + 1,) $\mu + b_i$.
        shrink: ratings of a residual of 0 that a user is thought to have given before; inf for no $b_u$.
        shift: added to all predictions; the median of ratings is not their mean.
        spread: standard deviation of what is left, for levels.
        usage: by how much the levels that a user was seen to give are preferred.
    """

    offsets: Tensor
    levels: Tensor | None

    def __init__(
        self,
        objective: Objective,
        offsets: np.ndarray,
        *,
        shrink: float = float("inf"),
        shift: float = 0.0,
        spread: float = 1.0,
        usage: float = 0.0,
    ) -> None:
        super().__init__(objective)
        about: Any = objective.metrics
        self.mean, self.std = about.mean, about.std
        levels = levels_of(objective)
        self.register_buffer("levels", None if levels is None else torch.tensor(levels) * self.std + self.mean)
        self.register_buffer("offsets", torch.from_numpy(offsets).float())
        self.shrink, self.shift, self.spread, self.usage = shrink, shift, spread, usage

    def _adapt(self, support: Batch) -> Tree:
        targets, weight = support.targets, support.weight
        scores = targets[:, 0] * self.std + self.mean if self.levels is None else targets @ self.levels
        items = support.inputs["item"]
        left = scores - self.offsets[items]
        user = weight @ left / (weight.sum() + self.shrink)
        state = {"user": user} | self.learn(items, left - user, weight)
        return state | ({} if self.levels is None else {"usage": weight @ targets})

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        items = inputs["item"]
        score = self.offsets[items] + state["user"] + self.more(state, items) + self.shift
        if self.levels is None:
            return ((score - self.mean) / self.std)[:, None]
        logits = -0.5 * ((score[:, None] - self.levels) / self.spread).square()
        share = (state["usage"] + 1 / len(self.levels)) / (state["usage"].sum() + 1)
        return logits + self.usage * share.log()

    def learn(self, items: Tensor, left: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """What else is learned of a user: items (N,), what their ratings are above what was predicted, weights."""
        return {}

    def more(self, state: Tree, items: Tensor) -> Tensor | float:
        """What is added to predictions for items (M,)."""
        return 0.0


class Factors(Recommender):
    """Matrix factorisation: a user's factors are the ridge regression of residuals on the items' (fold-in)."""

    factors: Tensor

    def __init__(
        self, objective: Objective, offsets: np.ndarray, factors: np.ndarray, *, l2: float, **options: Any
    ) -> None:
        super().__init__(objective, offsets, **options)
        self.register_buffer("factors", torch.from_numpy(factors).float())
        self.l2 = l2

    def learn(self, items: Tensor, left: Tensor, weight: Tensor) -> dict[str, Tensor]:
        factors = self.factors[items]
        prior = torch.ones_like(factors[0])
        return {"factors": posterior(factors, left, weight, prior, torch.as_tensor(self.l2, dtype=left.dtype))[0]}

    def more(self, state: Tree, items: Tensor) -> Tensor:
        return self.factors[items] @ state["factors"]


class Neighbours(Recommender):
    r"""Items like those that the user rated: $\sum_j s_{ij} r_j / (\sum_j |s_{ij}| + \alpha)$ over their residuals.

    $s_{ij}$ is the cosine of the items' residuals over users who rated both, shrunk by $n_{ij} / (n_{ij} + \lambda)$.
    """

    def __init__(
        self,
        objective: Objective,
        offsets: np.ndarray,
        residuals: Any,
        *,
        shrink_pairs: float,
        alpha: float,
        nearest: int,
        **options: Any,
    ) -> None:
        super().__init__(objective, offsets, **options)
        self.residuals = residuals
        self.shrink_pairs, self.alpha, self.nearest = shrink_pairs, alpha, nearest

    def learn(self, items: Tensor, left: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {"items": items, "left": left, "weight": weight}

    def more(self, state: Tree, items: Tensor) -> Tensor:
        likeness = self._likeness(items.numpy(), state["items"].numpy()) * (state["weight"] > 0)
        if likeness.shape[1] > self.nearest:
            least = likeness.abs().topk(self.nearest, 1).values[:, -1:]
            likeness = torch.where(likeness.abs() >= least, likeness, 0)
        return likeness @ state["left"] / (likeness.abs().sum(1) + self.alpha)

    def _likeness(self, items: np.ndarray, others: np.ndarray) -> Tensor:
        mine, theirs = (self.residuals[rows] for rows in (items, others))
        seen = [_ones(rows) for rows in (mine, theirs)]
        both = (seen[0] @ seen[1].T).toarray()
        dot = (mine @ theirs.T).toarray()
        lengths = (mine.power(2) @ seen[1].T).toarray() * (seen[0] @ theirs.power(2).T).toarray()
        cosine = dot / np.sqrt(np.maximum(lengths, 1e-12))
        return torch.from_numpy((cosine * both / (both + self.shrink_pairs)).astype(np.float32))


def recommender(
    kind: Kind,
    ratings: Ratings,
    objective: Objective,
    *,
    shrink_user: float = 5.0,
    shrink_item: float = 3.0,
    factors: int = 8,
    l2: float = 8.0,
    fold_in_l2: float | None = None,
    nearest: int = 20,
    shrink_pairs: float = 100.0,
    alpha: float = 0.5,
    shift: float = 0.0,
    usage: float = 0.0,
    seed: int = 0,
) -> Recommender:
    r"""A recommender fitted to training ratings.

    - `global_mean`: $\mu$. `user_mean`: $\mu + b_u$. `item_mean`: $\mu + b_i$.
    - `bias`: $\mu + b_u + b_i$, means that are shrunk, $b_i = \sum_u (y - \mu - b_u) / (n_i + \lambda_i)$, in turn.
    - `popularity`: a line in the logarithm of how often an item was rated.
    - `item_knn`: `bias`, and the residuals of like items; see `Neighbours`.
    - `matrix_factorisation`: `bias`, and factors by alternating least squares on its residuals; see `Factors`.

    Args:
        kind: which.
        ratings: of training.
        objective: what the tasks ask.
        shrink_user, shrink_item: $\lambda_u$ and $\lambda_i$.
        factors: D.
        l2: penalty on factors; `fold_in_l2`: on those of a new user, the same by default.
        nearest, shrink_pairs, alpha: of `Neighbours`.
        shift, usage: of `Recommender`.
        seed: of the factors' first values.

    Example:
        >>> users, items = np.repeat(np.arange(30), 10), 1 + np.tile(np.arange(10), 30)
        >>> log = Ratings(users, items, 1.0 + items % 5, 10)
        >>> learner = recommender("item_mean", log, kshot.objectives.rating(3, 1, 1, 5, 4), shrink_item=0.0)
        >>> none = Batch({"item": torch.ones(1).long()}, torch.zeros(1, 1), torch.zeros(1))
        >>> learner.predict(learner.adapt(none), {"item": torch.tensor([1, 4, 0])})[:, 0]
        tensor([-1.,  2.,  0.])

    References:
        Koren, Bell, Volinsky: Matrix Factorization Techniques for Recommender Systems, IEEE Computer 42(8), 2009;
        Sarwar, Karypis, Konstan, Riedl: Item-based Collaborative Filtering Recommendation Algorithms, WWW 2001.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"a recommender is one of {', '.join(get_args(Kind))}, got {kind!r}")
    mean = float(ratings.scores.mean())
    plain = np.full(ratings.size + 1, mean)
    seen = np.bincount(ratings.items, minlength=ratings.size + 1)
    options: dict[str, Any] = {"shift": shift, "usage": usage}
    if kind == "global_mean":
        return _spread(Recommender(objective, plain, **options), ratings, plain)
    if kind == "user_mean":
        return _spread(Recommender(objective, plain, shrink=shrink_user, **options), ratings, plain)
    if kind == "popularity":
        slope, start = np.polyfit(np.log1p(seen[ratings.items]), ratings.scores, 1)
        line = start + slope * np.log1p(seen)
        return _spread(Recommender(objective, line, **options), ratings, line)
    if kind == "item_mean":
        total = np.bincount(ratings.items, ratings.scores - mean, minlength=len(plain))
        offsets = mean + total / np.maximum(seen + shrink_item, 1e-9)
        return _spread(Recommender(objective, offsets, **options), ratings, offsets)
    shrinks = (shrink_user, shrink_item)
    offsets = mean + ratings.once(biases, *shrinks)[1]
    residuals = _residuals(ratings, *shrinks) if kind == "bias" else ratings.once(_residuals, *shrinks)
    options |= {"shrink": shrink_user, "spread": max(float(residuals.data.std(dtype=float)), 1e-3)}
    if kind == "bias":
        return Recommender(objective, offsets, **options)
    if kind == "item_knn":
        return Neighbours(
            objective, offsets, residuals, nearest=nearest, shrink_pairs=shrink_pairs, alpha=alpha, **options
        )
    made = ratings.once(_factors, *shrinks, factors, l2, seed)
    return Factors(objective, offsets, made, l2=l2 if fold_in_l2 is None else fold_in_l2, **options)


def biases(ratings: Ratings, shrink_user: float, shrink_item: float, rounds: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Shrunk offsets of users and of items, each fitted to what the other leaves, in turn."""
    left = ratings.scores - ratings.scores.mean()
    seen = _ones(ratings.by_user), _ones(ratings.by_item)
    totals, counts = [], []
    for own, table in zip((ratings.users, ratings.items), seen):
        totals.append(np.bincount(own, left, table.shape[0]))
        counts.append(np.diff(table.indptr))
    of_items = np.zeros(ratings.size + 1)
    for _ in range(rounds):
        of_users = _ratio(totals[0] - seen[0] @ of_items, counts[0] + shrink_user)
        of_items = _ratio(totals[1] - seen[1] @ of_users, counts[1] + shrink_item)
    return of_users, of_items


def _residuals(ratings: Ratings, shrink_user: float, shrink_item: float) -> Any:
    """What `biases` leave of the ratings, sparse (I + 1, users)."""
    of_users, of_items = ratings.once(biases, shrink_user, shrink_item)
    table = ratings.by_item
    left = table.data - (of_items + ratings.scores.mean()).repeat(np.diff(table.indptr)) - of_users[table.indices]
    return _like(table, left.astype(np.float32))


def _factors(
    ratings: Ratings, shrink_user: float, shrink_item: float, factors: int, l2: float, seed: int
) -> np.ndarray:
    return alternating(ratings.once(_residuals, shrink_user, shrink_item), factors, l2, seed)


def alternating(scores: Any, factors: int, l2: float, seed: int, rounds: int = 8) -> np.ndarray:
    """Factors (I, D) of items by alternating least squares on scores, sparse (I, U), with one ridge for all."""
    of_items = np.random.default_rng(seed).normal(0, 0.1, (scores.shape[0], factors))
    of_each_user = scores.T.tocsr()
    for _ in range(rounds):
        of_users = _solve(of_each_user, of_items, l2)
        of_items = _solve(scores, of_users, l2)
    return of_items


def _solve(scores: Any, features: np.ndarray, l2: float, at_once: int = 4096) -> np.ndarray:
    """For each row of scores, sparse (n, m), its ridge regression on features (m, D); 0 for a row without any: (n, D).

    The sums of squares of all rows are one product with the table of each feature's products. Sums are in float32, as
    that takes half as long; equations are solved in float64.
    """
    size = features.shape[1]
    above = np.triu_indices(size)
    features = features.astype(np.float32)
    products = features[:, above[0]] * features[:, above[1]]
    solved = np.empty((scores.shape[0], size))
    for start in range(0, len(solved), at_once):
        rows = scores[start : start + at_once]
        squares = np.empty((rows.shape[0], size, size))
        squares[:, *above] = squares[:, *above[::-1]] = _ones(rows) @ products
        squares += l2 * np.eye(size)
        solved[start : start + at_once] = np.linalg.solve(squares, (rows @ features)[..., None])[..., 0]
    return solved


def _ones(table: Any) -> Any:
    """1 wherever a sparse table has an entry, 0 included."""
    return _like(table, np.ones(table.nnz, np.float32))


def _like(table: Any, data: np.ndarray) -> Any:
    """A sparse table with the entries of another, and other numbers in them."""
    return type(table)((data, table.indices, table.indptr), table.shape)


def _spread(learner: Recommender, ratings: Ratings, offsets: np.ndarray) -> Recommender:
    """The learner with the standard deviation that its offsets leave of the training ratings."""
    learner.spread = max(float((ratings.scores - offsets[ratings.items]).std()), 1e-3)
    return learner


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return total / np.maximum(count, 1e-9)


GRIDS: dict[Kind, Sequence[dict[str, Any]]] = {
    "global_mean": [{}],
    "popularity": [{}],
    "user_mean": [{"shrink_user": shrink} for shrink in (0.0, 2.0, 5.0)],
    "item_mean": [{"shrink_item": shrink} for shrink in (0.0, 3.0, 8.0)],
    "bias": [{"shrink_user": user, "shrink_item": item} for user in (3.0, 5.0, 8.0) for item in (3.0, 5.0, 8.0)],
    "item_knn": [
        {"shrink_user": 8.0, "shrink_pairs": pairs, "alpha": alpha} for pairs in (10.0, 100.0) for alpha in (0.2, 1.0)
    ],
    "matrix_factorisation": [
        {"shrink_user": 8.0, "factors": factors, "l2": l2, "fold_in_l2": fold}
        for factors in (4, 16)
        for l2 in (4.0, 10.0)
        for fold in (2.0, 8.0)
    ],
}
"""What is tried of each on validation tasks."""
