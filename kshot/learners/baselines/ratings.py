"""Recommenders without meta-learning, fitted to the training ratings in closed form, as baselines for learners.

A new user's mean is shrunk and factors are folded in. Each is a `Learner`, so that the same code scores it on the same
tasks; none has meta-parameters.

Shape legend: n training ratings, I items with number 0 for those not rated in training, U users, D factors, N support
rows, M query rows, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from kshot.argument_checks import check_arguments
from kshot.learner import Learner
from kshot.learners.pooling.posterior import posterior
from kshot.objectives import Objective, levels_of
from kshot.sources.ratings.tasks import ratings_of
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Tree

Kind = Literal["global_mean", "user_mean", "item_mean", "bias", "popularity", "item_knn", "matrix_factorisation"]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Ratings:
    """Training ratings: users (n,) numbered from 0, items (n,) from 1 to `num_items`, and scores (n,)."""

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    num_items: int
    _fits: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def by_item(self) -> Any:
        """The ratings as a sparse matrix (I + 1, U) in CSR form."""
        from scipy.sparse import csr_matrix

        shape = (self.num_items + 1, int(self.users.max()) + 1)
        return csr_matrix((self.scores.astype(np.float32), (self.items, self.users)), shape)

    @cached_property
    def by_user(self) -> Any:
        """The same, (U, I + 1)."""
        return self.by_item.T.tocsr()

    def cached(self, fit: Callable[..., T], *options: Hashable) -> T:
        """`fit(self, *options)`, computed once: the recommenders of a grid share it."""
        if (fit, options) not in self._fits:
            self._fits[fit, options] = fit(self, *options)
        return self._fits[fit, options]


class Recommender(Learner):
    r"""$\hat y = \mu + b_i + b_u$, and a correction that subclasses add; see `recommender`.

    The state is `{"user": ()}`, the user's shrunk mean residual, and the entries of `fit_residuals`.

    Args:
        objective: `objectives.rating` or `objectives.levels`.
        offsets: (I + 1,) $\mu + b_i$.
        shrink: number of pseudo-ratings with a residual of 0 in a user's mean; inf for no $b_u$.
        shift: added to all predictions, since the median of ratings differs from their mean.
        spread: standard deviation of the residuals, for levels.
        usage: weight of the log shares of the levels that a user has given.
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
        scale: Any = objective.metrics
        self.mean, self.std = scale.mean, scale.std
        levels = levels_of(objective)
        self.register_buffer("levels", None if levels is None else torch.tensor(levels) * self.std + self.mean)
        self.register_buffer("offsets", torch.from_numpy(offsets).float())
        self.shrink, self.shift, self.spread, self.usage = shrink, shift, spread, usage

    def _adapt(self, support: Batch) -> Tree:
        targets, weight = support.targets, support.weight
        scores = targets[:, 0] * self.std + self.mean if self.levels is None else targets @ self.levels
        items = support.inputs["item"]
        residuals = scores - self.offsets[items]
        user = weight @ residuals / (weight.sum() + self.shrink)
        state = {"user": user} | self.fit_residuals(items, residuals - user, weight)
        return state | ({} if self.levels is None else {"usage": weight @ targets})

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        items = inputs["item"]
        score = self.offsets[items] + state["user"] + self.correction(state, items) + self.shift
        if self.levels is None:
            return ((score - self.mean) / self.std)[:, None]
        logits = -0.5 * ((score[:, None] - self.levels) / self.spread).square()
        share = (state["usage"] + 1 / len(self.levels)) / (state["usage"].sum() + 1)
        return logits + self.usage * share.log()

    def fit_residuals(self, items: Tensor, residuals: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Further entries of a user's state, from the residuals (N,) of rated items (N,)."""
        return {}

    def correction(self, state: Tree, items: Tensor) -> Tensor | float:
        """Predicted residuals (M,) of items (M,)."""
        return 0.0


class MatrixFactorisation(Recommender):
    """Predicts residuals by factors; a user's are the ridge regression of the residuals on the items' (fold-in)."""

    factors: Tensor

    def __init__(
        self, objective: Objective, offsets: np.ndarray, factors: np.ndarray, *, l2: float, **options: Any
    ) -> None:
        super().__init__(objective, offsets, **options)
        self.register_buffer("factors", torch.from_numpy(factors).float())
        self.l2 = l2

    def fit_residuals(self, items: Tensor, residuals: Tensor, weight: Tensor) -> dict[str, Tensor]:
        factors = self.factors[items]
        l2 = torch.as_tensor(self.l2, dtype=residuals.dtype)
        return {"factors": posterior(factors, residuals, weight, torch.ones_like(factors[0]), l2)[0]}

    def correction(self, state: Tree, items: Tensor) -> Tensor:
        return self.factors[items] @ state["factors"]


class ItemNeighbours(Recommender):
    r"""Predicts residuals by those of similar items: $\sum_j s_{ij} r_j / (\sum_j |s_{ij}| + \alpha)$.

    $s_{ij}$ is the cosine of the items' residuals over users who rated both, shrunk by $n_{ij} / (n_{ij} + \lambda)$.
    """

    def __init__(
        self,
        objective: Objective,
        offsets: np.ndarray,
        item_residuals: Any,
        *,
        shrink_pairs: float,
        alpha: float,
        nearest: int,
        **options: Any,
    ) -> None:
        super().__init__(objective, offsets, **options)
        self.item_residuals = item_residuals
        self.shrink_pairs, self.alpha, self.nearest = shrink_pairs, alpha, nearest

    def fit_residuals(self, items: Tensor, residuals: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {"items": items, "residuals": residuals, "weight": weight}

    def correction(self, state: Tree, items: Tensor) -> Tensor:
        similarity = self._similarity(items.cpu().numpy(), state["items"].cpu().numpy()) * (state["weight"] > 0)
        if similarity.shape[1] > self.nearest:
            threshold = similarity.abs().topk(self.nearest, 1).values[:, -1:]
            similarity = torch.where(similarity.abs() >= threshold, similarity, 0)
        return similarity @ state["residuals"] / (similarity.abs().sum(1) + self.alpha)

    def _similarity(self, items: np.ndarray, others: np.ndarray) -> Tensor:
        a, b = self.item_residuals[items], self.item_residuals[others]
        rated_a, rated_b = _ones(a), _ones(b)
        num_common = (rated_a @ rated_b.T).toarray()
        lengths = (a.power(2) @ rated_b.T).toarray() * (rated_a @ b.power(2).T).toarray()
        cosine = (a @ b.T).toarray() / np.sqrt(np.maximum(lengths, 1e-12))
        return torch.from_numpy((cosine * num_common / (num_common + self.shrink_pairs)).astype(np.float32))


@check_arguments
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
    - `popularity`: a linear function of the logarithm of the number of ratings of an item.
    - `bias`: $\mu + b_u + b_i$, shrunk means, $b_i = \sum_u (y - \mu - b_u) / (n_i + \lambda_i)$, fitted alternately.
    - `item_knn`: `bias`, and the residuals of similar items; see `ItemNeighbours`.
    - `matrix_factorisation`: `bias`, and factors by alternating least squares on its residuals.

    Args:
        kind: the recommender.
        ratings: training ratings.
        objective: `objectives.rating` or `objectives.levels`.
        shrink_user, shrink_item: $\lambda_u$ and $\lambda_i$.
        factors: D.
        l2: ridge penalty on factors; `fold_in_l2`: on those of a new user, by default the same.
        nearest: largest number of similar items; shrink_pairs, alpha: $\lambda$ and $\alpha$ of `ItemNeighbours`.
        shift, usage: as in `Recommender`.
        seed: random seed of the factors' initial values.

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
    options: dict[str, Any] = {"shift": shift, "usage": usage}
    mean = float(ratings.scores.mean())
    if kind in ("global_mean", "user_mean", "item_mean", "popularity"):
        offsets = np.full(ratings.num_items + 1, mean)
        counts = np.bincount(ratings.items, minlength=ratings.num_items + 1)
        if kind == "item_mean":
            offsets += _shrunk(np.bincount(ratings.items, ratings.scores - mean, len(offsets)), counts, shrink_item)
        elif kind == "popularity":
            slope, intercept = np.polyfit(np.log1p(counts[ratings.items]), ratings.scores, 1)
            offsets = intercept + slope * np.log1p(counts)
        spread = _spread(ratings.scores - offsets[ratings.items])
        shrink = shrink_user if kind == "user_mean" else float("inf")
        return Recommender(objective, offsets, shrink=shrink, spread=spread, **options)
    shrinkage = (shrink_user, shrink_item)
    offsets = mean + ratings.cached(biases, *shrinkage)[1]
    residuals = _residuals(ratings, *shrinkage) if kind == "bias" else ratings.cached(_residuals, *shrinkage)
    options |= {"shrink": shrink_user, "spread": _spread(residuals.data)}
    if kind == "bias":
        return Recommender(objective, offsets, **options)
    if kind == "item_knn":
        options |= {"nearest": nearest, "shrink_pairs": shrink_pairs, "alpha": alpha}
        return ItemNeighbours(objective, offsets, residuals, **options)
    of_items = ratings.cached(_factors, *shrinkage, factors, l2, seed)
    return MatrixFactorisation(objective, offsets, of_items, l2=l2 if fold_in_l2 is None else fold_in_l2, **options)


def biases(ratings: Ratings, shrink_user: float, shrink_item: float, rounds: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Shrunk offsets of users (U,) and items (I + 1,), each fitted in turn to the residuals of the other."""
    centred = ratings.scores - ratings.scores.mean()
    by_user, by_item = _ones(ratings.by_user), _ones(ratings.by_item)
    user_sums = np.bincount(ratings.users, centred, by_user.shape[0])
    item_sums = np.bincount(ratings.items, centred, by_item.shape[0])
    of_items = np.zeros(ratings.num_items + 1)
    for _ in range(rounds):
        of_users = _shrunk(user_sums - by_user @ of_items, np.diff(by_user.indptr), shrink_user)
        of_items = _shrunk(item_sums - by_item @ of_users, np.diff(by_item.indptr), shrink_item)
    return of_users, of_items


def _residuals(ratings: Ratings, shrink_user: float, shrink_item: float) -> Any:
    """The residuals of the ratings after `biases`, sparse (I + 1, U)."""
    of_users, of_items = ratings.cached(biases, shrink_user, shrink_item)
    table = ratings.by_item
    offsets = (of_items + ratings.scores.mean()).repeat(np.diff(table.indptr))
    return _with_data(table, (table.data - offsets - of_users[table.indices]).astype(np.float32))


def _factors(
    ratings: Ratings, shrink_user: float, shrink_item: float, factors: int, l2: float, seed: int, rounds: int = 8
) -> np.ndarray:
    """Factors (I + 1, D) of items by alternating least squares on the residuals, with one ridge penalty for all."""
    residuals = ratings.cached(_residuals, shrink_user, shrink_item)
    by_user = residuals.T.tocsr()
    of_items = np.random.default_rng(seed).normal(0, 0.1, (residuals.shape[0], factors))
    for _ in range(rounds):
        of_users = _ridge_of_rows(by_user, of_items, l2)
        of_items = _ridge_of_rows(residuals, of_users, l2)
    return of_items


def _ridge_of_rows(scores: Any, features: np.ndarray, l2: float, chunk: int = 4096) -> np.ndarray:
    """For each row of scores, sparse (n, m), its ridge regression on features (m, D); 0 for an empty row: (n, D).

    The Gram matrices of all rows are one product with the pairwise products of features. Sums are in float32, which
    takes half the time; equations are solved in float64.
    """
    size = features.shape[1]
    upper = np.triu_indices(size)
    features = features.astype(np.float32)
    products = features[:, upper[0]] * features[:, upper[1]]
    solved = np.empty((scores.shape[0], size))
    for start in range(0, len(solved), chunk):
        rows = scores[start : start + chunk]
        gram = np.empty((rows.shape[0], size, size))
        gram[:, *upper] = gram[:, *upper[::-1]] = _ones(rows) @ products
        gram += l2 * np.eye(size)
        solved[start : start + chunk] = np.linalg.solve(gram, (rows @ features)[..., None])[..., 0]
    return solved


def _ones(table: Any) -> Any:
    """A sparse table with 1 at each stored entry, entries of value 0 included."""
    return _with_data(table, np.ones(table.nnz, np.float32))


def _with_data(table: Any, data: np.ndarray) -> Any:
    """A sparse table with the same stored entries as another, and other values."""
    return type(table)((data, table.indices, table.indptr), table.shape)


def _shrunk(sums: np.ndarray, counts: np.ndarray, shrink: float) -> np.ndarray:
    """Means shrunk to 0, from sums and counts."""
    return sums / np.maximum(counts + shrink, 1e-9)


def _spread(residuals: np.ndarray) -> float:
    return max(float(residuals.std(dtype=float)), 1e-3)


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
        {"shrink_user": 8.0, "factors": factors, "l2": l2, "fold_in_l2": fold_in_l2}
        for factors in (4, 16)
        for l2 in (4.0, 10.0)
        for fold_in_l2 in (2.0, 8.0)
    ],
}
"""Options of each recommender among which validation tasks choose."""


def baselines(source: TaskSource) -> dict[str, Callable[[], list[Recommender]]]:
    """The recommenders for tasks of ratings: name -> fits the candidates to the training split; {} for other tasks."""
    tasks = ratings_of(source)
    if tasks is None or tasks.preprocessor.rating is None:
        return {}

    def candidates(kind: Kind) -> list[Recommender]:
        with during(source, "training"):
            log = Ratings(*tasks.training_log(), num_items=len(tasks.preprocessor.items))
        return [recommender(kind, log, tasks.objective, **options) for options in GRIDS[kind]]

    return {kind: partial(candidates, kind) for kind in GRIDS}
