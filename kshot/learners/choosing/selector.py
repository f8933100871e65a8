"""A selector: which of several plans suits an instance, from the losses of all plans on earlier instances.

Shape legend: n earlier instances, m new instances, d features, p plans, T trees, V nodes of all trees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from annotated_types import Ge, Le, Len
from numpy.typing import ArrayLike, NDArray

from kshot.annotations import NonNegativeInt, PositiveInt
from kshot.argument_checks import check_arguments

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Share = Annotated[float, Ge(0), Le(1)]

QUANTILES = np.linspace(0, 1, 65)
"""A feature's rank among earlier instances is a share of these quantiles, so that units do not matter."""
TEMPERATURES = tuple(2.0**power for power in range(-6, 7))


class Selector:
    r"""Chooses among p plans for an instance by its features, from the losses of the plans on earlier instances.

    A forest of extremely randomised trees weighs the earlier instances by how often they share a leaf $L_t$ with the
    new one. The expected loss of a plan is the weighted mean of its losses, shrunk to the mean over all instances:

    $$ w_i(x) = \frac{1 - s}{T} \sum_t \frac{1[i \in L_t(x)]}{|L_t(x)|} + \frac sn, \qquad
       \hat\ell_j(x) = \sum_i w_i(x)\, \ell_{ij} $$

    One half of the trees predict by how much the plans' losses differ from their mean on the instance, the other half
    their ranks, which large losses do not dominate. The least size of a leaf and the shrinkage s are those whose choice
    loses least in cross-validation. With s = 1 it is the best single plan, the one of least mean loss. That is kept
    unless another choice is better by more than a standard error, and with a single instance or group.

    `weights` are a softmin of the expected losses. Its temperature minimises, in cross-validation, the mix loss
    $-\ln \sum_j w_j \exp(-\ell_j / u)$, where u is the mean regret of the best single plan. It is the log loss of
    a mixture of the plans' predictions if the losses are logarithmic and u = 1.

    Args:
        seed: seed of the trees and of the folds.
        trees: number of trees.
        leaf_sizes: least numbers of instances of a leaf to choose among.
        shrinkages: values of s to choose among. A single value with a single leaf size is taken as it is.
        folds: number of folds of the cross-validation.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(60, 3))
        >>> losses = np.stack([x[:, 0] > 0, x[:, 0] <= 0, np.full(60, 0.4)], axis=1)
        >>> selector = Selector().fit(x, losses)
        >>> selector.choose([[-2.0, 0.0, 0.0], [2.0, 0.0, np.nan]])
        array([0, 1])

    References:
        Geurts, Ernst, Wehenkel: Extremely randomized trees, Machine Learning 63 (2006). Weights by leaves: Meinshausen,
        Quantile regression forests, JMLR 7 (2006). Selection of algorithms: Kotthoff, arXiv:1210.7959. The mix loss:
        Vovk, A game of prediction with expert advice (1998).
    """

    @check_arguments
    def __init__(
        self,
        *,
        seed: NonNegativeInt = 0,
        trees: PositiveInt = 200,
        leaf_sizes: Annotated[Sequence[PositiveInt], Len(1)] = (1, 5),
        shrinkages: Annotated[Sequence[Share], Len(1)] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
        folds: Annotated[int, Ge(2)] = 5,
    ) -> None:
        self.seed, self.trees, self.folds = seed, trees, folds
        self.leaf_sizes, self.shrinkages = tuple(leaf_sizes), tuple(shrinkages)

    def fit(self, features: ArrayLike, losses: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit to earlier instances.

        Args:
            features: (n, d); NaN or infinite where unknown.
            losses: (n, p), finite; lower is better.
            groups: (n,); instances of one group, such as the tasks of one data set, are in the same fold.

        Raises:
            ValueError: the shapes do not agree, there are no losses, or one is not finite.
        """
        x, y = np.asarray(features, np.float64), np.asarray(losses, np.float64)
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not y.size:
            raise ValueError(
                "features must be (n, d) and losses (n, p), with at least one instance and plan, "
                f"got {x.shape} and {y.shape}"
            )
        if not np.isfinite(y).all():
            raise ValueError(
                f"losses must be finite, got {np.sum(~np.isfinite(y))} that are not; state what a plan loses that fails"
            )
        if groups is not None and len(np.asarray(groups)) != len(y):
            raise ValueError(
                f"groups must name the group of each of the {len(y)} instances, got {len(np.asarray(groups))}"
            )
        regret = y - y.min(1, keepdims=True)
        self._losses, self._unit, self._temperature = y, float(regret[:, y.mean(0).argmin()].mean()) or 1.0, 1.0
        fold = _folds(len(y), groups, self.folds, self.seed)
        candidates = list(product(self.leaf_sizes, self.shrinkages))
        leaf, self._shrinkage = candidates[0] if len(candidates) == 1 else (1, 1.0)
        if len(candidates) > 1 and fold.any():
            predicted = self._cross_validate(x, y, fold)
            leaf, self._shrinkage = _least_loss(predicted, y)
            mixed = [_mix_loss(predicted[leaf, self._shrinkage], regret, self._unit, t) for t in TEMPERATURES]
            self._temperature = TEMPERATURES[int(np.argmin(mixed))]
        self._forest = self._grow(x, y, leaf) if self._shrinkage < 1 else _Forest.empty(x)
        return self

    def _grow(self, x: Floats, y: Floats, leaf: int) -> _Forest:
        from scipy.stats import rankdata

        differences = y - y.mean(1, keepdims=True)
        targets = [differences / (differences.std() or 1.0), rankdata(y, axis=1)]
        return _Forest.grow(x, targets, leaf=leaf, trees=-(-self.trees // 2), seed=self.seed)

    def _cross_validate(self, x: Floats, y: Floats, fold: Ints) -> dict[tuple[int, float], Floats]:
        """Expected losses (n, p) of held-out instances, by leaf size and shrinkage; the best single plan is (1, 1)."""
        predicted = {key: np.empty_like(y) for key in [(1, 1.0), *product(self.leaf_sizes, self.shrinkages)]}
        for k in range(fold.max() + 1):
            held, rest = fold == k, fold != k
            mean = y[rest].mean(0)
            near = {leaf: self._grow(x[rest], y[rest], leaf).weights(x[held]) @ y[rest] for leaf in self.leaf_sizes}
            for (leaf, s), values in predicted.items():
                values[held] = mean if s == 1 else (1 - s) * near[leaf] + s * mean
        return predicted

    def neighbours(self, features: ArrayLike) -> Floats:
        """The weights of the earlier instances, (m, n), rows that sum to 1, for features (m, d)."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or x.shape[1] != len(self._forest.grid):
            raise ValueError(f"features must be (m, {len(self._forest.grid)}) as in fit, got {x.shape}")
        n = len(self._losses)
        if self._shrinkage == 1:
            return np.full((len(x), n), 1 / n)
        return (1 - self._shrinkage) * self._forest.weights(x) + self._shrinkage / n

    def expected(self, features: ArrayLike) -> Floats:
        """The expected loss of each plan, (m, p), for features (m, d)."""
        return self.neighbours(features) @ self._losses

    def choose(self, features: ArrayLike) -> Ints:
        """The plan of least expected loss, (m,), for features (m, d)."""
        return self.expected(features).argmin(1)

    def weights(self, features: ArrayLike) -> Floats:
        """Weights of the plans, (m, p), rows that sum to 1, for features (m, d)."""
        return _softmin(self.expected(features) / (self._unit * self._temperature))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All that prediction needs, as numeric arrays by name."""
        numbers = np.array([self._shrinkage, self._unit, self._temperature])
        return {"losses": self._losses, "numbers": numbers, **self._forest._asdict()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The selector that `to_arrays` describes: its predictions are bitwise the same."""
        selector = cls()
        selector._losses = arrays["losses"]
        selector._shrinkage, selector._unit, selector._temperature = map(float, arrays["numbers"])
        selector._forest = _Forest(**{name: arrays[name] for name in _Forest._fields})
        return selector


class _Forest(NamedTuple):
    """Trees as arrays. A node is a number in 0 … V − 1."""

    grid: Floats  # (d, 65), quantiles of each feature
    feature: Ints  # (V,), which the node compares; -1 in a leaf
    threshold: Floats  # (V,)
    left: Ints  # (V,), the child if the feature's rank is at most the threshold
    right: Ints  # (V,)
    roots: Ints  # (T,)
    leaves: Ints  # (n, T), of the earlier instances

    @classmethod
    def empty(cls, x: Floats) -> _Forest:
        none = np.zeros(0, np.int64)
        return cls(_quantiles(x), none, np.zeros(0), none, none, none, np.zeros((len(x), 0), np.int64))

    @classmethod
    def grow(cls, x: Floats, targets: Sequence[Floats], *, leaf: int, trees: int, seed: int) -> _Forest:
        """Trees for each of the targets (n, k), together."""
        from sklearn.ensemble import ExtraTreesRegressor

        grid = _quantiles(x)
        ranks = _ranks(grid, x)
        grown = []
        for target in targets:
            forest = ExtraTreesRegressor(trees, min_samples_leaf=leaf, max_features="sqrt", random_state=seed)
            forest.fit(ranks, target if target.shape[1] > 1 else target[:, 0])
            grown += [tree.tree_ for tree in forest.estimators_]
        roots = np.cumsum([0, *(tree.node_count for tree in grown)])[:-1]
        return cls(
            grid,
            np.concatenate([np.where(tree.children_left < 0, -1, tree.feature) for tree in grown]).astype(np.int64),
            np.concatenate([tree.threshold for tree in grown]),
            np.concatenate([tree.children_left + root for tree, root in zip(grown, roots)]),
            np.concatenate([tree.children_right + root for tree, root in zip(grown, roots)]),
            roots,
            np.stack([tree.apply(ranks) + root for tree, root in zip(grown, roots)], axis=1),
        )

    def apply(self, x: Floats) -> Ints:
        """The leaf of each instance in each tree, (m, T)."""
        ranks = _ranks(self.grid, x)
        node = np.tile(self.roots, (len(x), 1))
        while (inner := self.feature[node] >= 0).any():
            instance, _ = np.nonzero(inner)
            here = node[inner]
            down = ranks[instance, self.feature[here]] <= self.threshold[here]
            node[inner] = np.where(down, self.left[here], self.right[here])
        return node

    def weights(self, x: Floats) -> Floats:
        """How often instances share a leaf with the earlier ones, (m, n), rows that sum to 1."""
        if len(x) == 1:  # the sparse product would sort all leaves
            instance, tree = np.nonzero(self.leaves == self.apply(x))
            share = 1 / (len(self.roots) * np.bincount(tree))[tree]
            return np.asarray(np.bincount(instance, share, len(self.leaves))[None], np.float64)
        from scipy.sparse import csr_array

        nodes, trees = len(self.feature), len(self.roots)
        size = np.bincount(self.leaves.ravel(), minlength=nodes)

        def member(leaves: Ints, value: Floats) -> Any:
            ends = np.arange(0, leaves.size + 1, trees)
            return csr_array((value, leaves.ravel(), ends), shape=(len(leaves), nodes))

        new = self.apply(x)
        shared = member(new, 1 / (trees * size[new.ravel()])) @ member(self.leaves, np.ones(self.leaves.size)).T
        return np.asarray(shared.toarray())


def _quantiles(x: Floats) -> Floats:
    """Quantiles of the known values of each feature, (d, 65)."""
    known = [column[np.isfinite(column)] for column in x.T]
    grid = [
        np.quantile(values, QUANTILES, method="inverted_cdf") if len(values) else np.zeros(len(QUANTILES))
        for values in known
    ]
    return np.array(grid).reshape(-1, len(QUANTILES))


def _ranks(grid: Floats, x: Floats) -> NDArray[np.float32]:
    """The rank of each feature in [0, 1], 0.5 where unknown, and the share of features that are unknown, (m, d + 1)."""
    known, value = np.isfinite(x), x[..., None]
    below = (grid < value).sum(-1) + (grid <= value).sum(-1)
    ranks = np.full((len(x), len(grid) + 1), 0.5, np.float32)
    ranks[:, :-1] = np.where(known, below / (2 * len(QUANTILES)), 0.5)
    ranks[:, -1] = 1 - known.mean(1) if len(grid) else 0
    return ranks


def _folds(n: int, groups: ArrayLike | None, folds: int, seed: int) -> Ints:
    """A fold for each instance, (n,): groups in random order, the large first, each into the smallest fold."""
    _, group = np.unique(np.arange(n) if groups is None else np.asarray(groups), return_inverse=True)
    size = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(size))
    fold, filled = np.zeros(len(size), np.int64), np.zeros(min(folds, len(size)))
    for index in order[np.argsort(-size[order], kind="stable")]:
        fold[index] = filled.argmin()
        filled[fold[index]] += size[index]
    return fold[group]


def _least_loss(predicted: Mapping[tuple[int, float], Floats], y: Floats) -> tuple[int, float]:
    """The key of the predictions whose choices lose least; (1, 1) if not better by more than a standard error."""
    rows = np.arange(len(y))
    lost = {key: y[rows, values.argmin(1)] for key, values in predicted.items()}
    best = min(lost, key=lambda key: lost[key].mean())
    gain = lost[1, 1.0] - lost[best]
    return best if gain.mean() > gain.std() / np.sqrt(len(y)) else (1, 1.0)


def _softmin(values: Floats) -> Floats:
    powers = np.exp(values.min(1, keepdims=True) - values)
    return powers / powers.sum(1, keepdims=True)


def _mix_loss(expected: Floats, regret: Floats, unit: float, temperature: float) -> float:
    mixture = _softmin(expected / (unit * temperature)) * np.exp(-regret / unit)
    return float(-np.log(np.maximum(mixture.sum(1), np.finfo(float).tiny)).mean())
