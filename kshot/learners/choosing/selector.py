"""A selector: which of several plans suits an instance, from the losses of all plans on earlier instances.

Shape legend: n earlier instances, m new instances, d features, p plans, T trees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kshot.annotations import NonNegativeInt, PositiveInt
from kshot.argument_checks import check_arguments

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHRINKAGE = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
LEAVES = (2, 5, 10)
TEMPERATURES = tuple(2.0**power for power in range(-6, 7))


class Selector:
    r"""Chooses among p plans for an instance by its features, from the losses of the plans on earlier instances.

    A forest of extremely randomised trees weighs the earlier instances by how often they share a leaf with the new
    one. The expected loss of a plan is a weighted mean of its losses, shrunk to its mean over all instances:

    $$ w_i(x) = \frac1T \sum_t \frac{1[i \in L_t(x)]}{|L_t(x)|}, \qquad
       \hat\ell_j(x) = \sum_i \big((1 - s)\, w_i(x) + s / n\big)\, \ell_{ij} $$

    The trees are grown on what each plan loses beyond the mean of the plans on the instance. The size of the leaves
    and the shrinkage s are chosen by cross-validation; s = 1 is the best single plan, and is chosen unless another
    value is better there by more than a standard error times `caution`.
    """

    @check_arguments
    def __init__(
        self, *, seed: NonNegativeInt = 0, trees: PositiveInt = 100, folds: PositiveInt = 5, caution: float = 0.5
    ) -> None:
        self.seed, self.trees, self.folds, self.caution = seed, trees, folds, caution

    def fit(self, features: ArrayLike, losses: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to earlier instances: features (n, d), NaN where missing; losses (n, p); groups (n,), kept together."""
        x, y = np.asarray(features, np.float64), np.asarray(losses, np.float64)
        _check(x, y)
        fold = _folds(len(y), groups, self.folds, self.seed)
        self._losses, self._temperature, self._unit = y, 1.0, 1.0
        best = (1.0, LEAVES[-1])
        if fold.max(initial=0) > 0:
            best = self._cross_validate(x, y, fold)
        self._shrinkage, leaf = best
        self._forest = _Forest.grow(x, y, leaf=leaf, trees=self.trees if best[0] < 1 else 0, seed=self.seed)
        return self

    def _cross_validate(self, x: Floats, y: Floats, fold: Ints) -> tuple[float, int]:
        single = np.empty(len(y))
        expected = {(s, leaf): np.empty_like(y) for s in SHRINKAGE for leaf in LEAVES}
        for k in range(fold.max() + 1):
            out, rest = fold == k, fold != k
            mean = y[rest].mean(0)
            for leaf in LEAVES:
                near = _Forest.grow(x[rest], y[rest], leaf=leaf, trees=self.trees, seed=self.seed).means(
                    x[out], y[rest]
                )
                for s in SHRINKAGE:
                    expected[s, leaf][out] = (1 - s) * near + s * mean
        rows = np.arange(len(y))
        single = y[rows, expected[1.0, LEAVES[0]].argmin(1)]
        scores = {}
        for (s, leaf), value in expected.items():
            difference = y[rows, value.argmin(1)] - single
            error = difference.std(ddof=1) / np.sqrt(len(y))
            scores[s, leaf] = difference.mean() + self.caution * error
        best = min(scores, key=lambda key: (scores[key], -key[0]))
        excess = y - y.min(1, keepdims=True)
        self._unit = float(excess[:, y.mean(0).argmin()].mean()) or 1.0
        mixed = {t: _mix_loss(expected[best], excess, self._unit, t) for t in TEMPERATURES}
        self._temperature = min(mixed, key=lambda key: mixed[key])
        return best

    def expected(self, features: ArrayLike) -> Floats:
        """The expected loss of each plan, (m, p), for features (m, d)."""
        x = np.asarray(features, np.float64)
        mean = self._losses.mean(0)
        if self._shrinkage == 1:
            return np.tile(mean, (len(x), 1))
        return (1 - self._shrinkage) * self._forest.means(x, self._losses) + self._shrinkage * mean

    def choose(self, features: ArrayLike) -> Ints:
        """The plan of least expected loss, (m,), for features (m, d)."""
        return self.expected(features).argmin(1)

    def weights(self, features: ArrayLike) -> Floats:
        """Weights of the plans, (m, p), rows that sum to 1, for features (m, d)."""
        return _softmin(self.expected(features), self._unit * self._temperature)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All that prediction needs, as numeric arrays by name."""
        numbers = np.array([self._shrinkage, self._temperature, self._unit])
        return {"losses": self._losses, "numbers": numbers, **self._forest._asdict()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The selector that `to_arrays` describes."""
        selector = cls()
        selector._losses = arrays["losses"]
        selector._shrinkage, selector._temperature, selector._unit = map(float, arrays["numbers"])
        selector._forest = _Forest(**{name: arrays[name] for name in _Forest._fields})
        return selector


class _Forest(NamedTuple):
    """Trees as arrays: of all nodes the feature (-1: leaf), the threshold and the children; of instances the leaves."""

    grid: Floats  # (d, 65) quantiles of each feature, on which trees see its rank
    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    roots: Ints  # (T,)
    leaves: Ints  # (n, T)

    @classmethod
    def grow(cls, x: Floats, y: Floats, *, leaf: int, trees: int, seed: int) -> _Forest:
        from sklearn.ensemble import ExtraTreesRegressor

        with np.errstate(invalid="ignore"):
            grid = np.stack([_quantiles(column) for column in x.T]) if x.shape[1] else np.zeros((0, 65))
        none = np.zeros(0, np.int64)
        if not trees:
            return cls(grid, none, np.zeros(0), none, none, none, np.zeros((len(x), 0), np.int64))
        target = y - y.mean(1, keepdims=True)
        forest = ExtraTreesRegressor(trees, min_samples_leaf=leaf, max_features=0.5, random_state=seed)
        inputs = _ranks(grid, x)
        forest.fit(inputs, target if y.shape[1] > 1 else target[:, 0])
        parts = [tree.tree_ for tree in forest.estimators_]
        start = np.cumsum([0, *(part.node_count for part in parts)])[:-1]
        left = np.concatenate([part.children_left + s for part, s in zip(parts, start)])
        right = np.concatenate([part.children_right + s for part, s in zip(parts, start)])
        feature = np.concatenate([np.where(part.children_left < 0, -1, part.feature) for part in parts])
        threshold = np.concatenate([part.threshold for part in parts])
        return cls(grid, feature, threshold, left, right, start, forest.apply(inputs) + start)

    def apply(self, x: Floats) -> Ints:
        """The leaf of each instance in each tree, (m, T)."""
        inputs = _ranks(self.grid, x)
        node = np.tile(self.roots, (len(x), 1))
        rows = np.arange(len(x))[:, None]
        while True:
            feature = self.feature[node]
            inner = feature >= 0
            if not inner.any():
                return node
            down = np.where(inputs[rows, feature] <= self.threshold[node], self.left[node], self.right[node])
            node = np.where(inner, down, node)

    def weights(self, x: Floats) -> Floats:
        """Weights of the earlier instances, (m, n)."""
        if len(x) == 1:  # the sparse product would sort all leaves
            same = self.leaves == self.apply(x)
            return (same / same.sum(0)).mean(1)[None]
        from scipy.sparse import csr_array

        size, trees = len(self.feature), len(self.roots)

        def membership(leaves: Ints) -> Any:
            values = np.ones(leaves.size)
            return csr_array((values, leaves.ravel(), np.arange(0, leaves.size + 1, trees)), (len(leaves), size))

        count = np.bincount(self.leaves.ravel(), minlength=size)
        here = membership(self.apply(x))
        here.data = 1 / (trees * count[here.indices])
        return (here @ membership(self.leaves).T).toarray()

    def means(self, x: Floats, y: Floats) -> Floats:
        """Means of y (n, p) over the earlier instances, weighted, (m, p)."""
        return self.weights(x) @ y


def _quantiles(column: Floats) -> Floats:
    known = column[np.isfinite(column)]
    return np.quantile(known, np.linspace(0, 1, 65)) if len(known) else np.zeros(65)


def _ranks(grid: Floats, x: Floats) -> NDArray[np.float32]:
    """Each feature's rank among those fitted to, in [0, 1], 0.5 if missing; last, the share of missing features."""
    known = np.isfinite(x)
    ranks = np.full((len(x), x.shape[1] + 1), 0.5, np.float32)
    for j, points in enumerate(grid):
        value = x[known[:, j], j]
        ranks[known[:, j], j] = (np.searchsorted(points, value) + np.searchsorted(points, value, "right")) / 130
    ranks[:, -1] = 1 - known.mean(1) if x.shape[1] else 0
    return ranks


def _folds(n: int, groups: ArrayLike | None, folds: int, seed: int) -> Ints:
    """A fold for each instance, (n,): as equal as groups allow, in random order."""
    _, unit = np.unique(np.arange(n) if groups is None else np.asarray(groups), return_inverse=True)
    count = np.bincount(unit, minlength=1)
    order = np.random.default_rng(seed).permutation(len(count))
    fold, filled = np.zeros(len(count), np.int64), np.zeros(min(folds, len(count)))
    for one in order[np.argsort(-count[order], kind="stable")]:
        fold[one] = filled.argmin()
        filled[fold[one]] += count[one]
    return fold[unit]


def _softmin(values: Floats, temperature: float) -> Floats:
    powers = np.exp(-(values - values.min(1, keepdims=True)) / temperature)
    return powers / powers.sum(1, keepdims=True)


def _mix_loss(expected: Floats, excess: Floats, unit: float, temperature: float) -> float:
    weights = _softmin(expected, unit * temperature)
    return float(-np.log((weights * np.exp(-excess / unit)).sum(1) + 1e-300).mean())


def _check(x: Floats, y: Floats) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not y.size:
        raise ValueError(
            f"features must be (n, d) and losses (n, p), with n and p at least 1, got {x.shape} and {y.shape}"
        )
    if not np.isfinite(y).all():
        raise ValueError(
            f"{(~np.isfinite(y)).sum()} losses are not finite; state what a plan loses that fails or runs out of time"
        )
