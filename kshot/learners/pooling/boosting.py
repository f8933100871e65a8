"""Gradient-boosted trees as tensors: fitted by scikit-learn, evaluated by PyTorch, stored with the learner's weights.

Shape legend: N training rows, n rows, F inputs, K outputs, T trees of each output, V nodes of a tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDS = 5
SMALLEST_LEAF = 20
L2 = 1.0


class Boosting(nn.Module):
    r"""A sum of regression trees for each output, $b_k(x) = b_{k0} + \sum_t \nu \, v_{kt}(\text{leaf}_{kt}(x))$.

    The trees are buffers of fixed sizes, with trees and nodes that are not used at 0, so that checkpoints hold them.
    Until
    `fit` is called all predictions are 0. Rows with a missing value (NaN) go where scikit-learn sends them.

    Args:
        outputs: K.
        trees: T, number of trees.
        leaves: largest number of leaves of a tree.
        depth: largest depth of a tree.
        rate: $\nu$, the learning rate.
    """

    base: Tensor
    feature: Tensor
    threshold: Tensor
    missing_left: Tensor
    left: Tensor
    right: Tensor
    value: Tensor

    def __init__(self, outputs: int, *, trees: int, leaves: int, depth: int, rate: float) -> None:
        super().__init__()
        self.trees, self.leaves, self.depth, self.rate = trees, leaves, depth, rate
        shape = outputs * trees, 2 * leaves - 1
        self.register_buffer("base", torch.zeros(outputs))
        for name in ("threshold", "value"):
            self.register_buffer(name, torch.zeros(shape))
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("missing_left", torch.zeros(shape, dtype=torch.bool))

    def forward(self, x_nF: Tensor) -> Tensor:
        """The sums of trees (n, K) at rows (n, F)."""
        x_Fn = x_nF.mT
        node = torch.zeros(len(self.feature), len(x_nF), dtype=torch.int64, device=x_nF.device)
        for _ in range(self.depth):
            value = x_Fn.gather(0, self.feature.gather(1, node))
            goes_left = torch.where(
                value.isnan(), self.missing_left.gather(1, node), value <= self.threshold.gather(1, node)
            )
            node = torch.where(goes_left, self.left.gather(1, node), self.right.gather(1, node))
        leaf = self.value.gather(1, node).unflatten(0, (len(self.base), self.trees))
        return (self.base[:, None] + leaf.sum(1)).mT.to(x_nF.dtype)

    @torch.no_grad()
    def fit(self, x_NF: Tensor, target_NK: Tensor, group_N: Tensor, *, logistic: bool) -> Tensor:
        """Fit the trees, in place, and return predictions (N, K) for each group by trees fitted to other groups.

        Trees with few leaves and trees with all leaves are tried, and those that predict other groups better are kept.
        """
        x, group, found = x_NF.numpy(), group_N.numpy(), []
        folds = np.random.default_rng(0).permutation(group.max() + 1)[group] % min(FOLDS, group.max() + 1)
        for output, target in enumerate(target_NK.numpy().T):
            best = None
            for leaves in sorted({min(4, self.leaves), self.leaves}):
                made = self._out_of_fold(x, target, folds, leaves, logistic)
                loss = _loss(made, target, logistic)
                if best is None or loss < best[0]:
                    best = loss, leaves, made
            assert best is not None
            found.append(torch.from_numpy(best[2]))
            self._store(output, self._model(best[1], logistic).fit(x, target))
        return torch.stack(found, 1)

    def _out_of_fold(
        self, x: np.ndarray, target: np.ndarray, folds: np.ndarray, leaves: int, logistic: bool
    ) -> np.ndarray:
        made = np.zeros(len(x))
        for fold in range(folds.max() + 1):
            held = folds == fold
            if logistic and len(np.unique(target[~held])) < 2:  # one class: the logit of its share, shrunk
                share = (target[~held].sum() + 0.5) / ((~held).sum() + 1)
                made[held] = np.log(share / (1 - share))
                continue
            model = self._model(leaves, logistic).fit(x[~held], target[~held])
            made[held] = model.decision_function(x[held]) if logistic else model.predict(x[held])
        return made

    def _model(self, leaves: int, logistic: bool) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingClassifier if logistic else HistGradientBoostingRegressor
        return kind(
            learning_rate=self.rate, max_iter=self.trees, max_leaf_nodes=leaves, max_depth=self.depth,
            min_samples_leaf=SMALLEST_LEAF, l2_regularization=L2, early_stopping=False, random_state=0,
        )  # fmt: skip

    def _store(self, output: int, model: Any) -> None:
        """Copy the trees of scikit-learn's model; a leaf is a node whose successors are itself."""
        self.base[output] = float(np.ravel(model._baseline_prediction)[0])
        for number, (tree,) in enumerate(model._predictors):
            nodes, row = tree.nodes, output * self.trees + number
            leaf, own = nodes["is_leaf"].astype(bool), np.arange(len(nodes))
            columns = {
                "feature": np.where(leaf, 0, nodes["feature_idx"]),
                "threshold": below(nodes["num_threshold"]),
                "missing_left": nodes["missing_go_to_left"].astype(bool),
                "left": np.where(leaf, own, nodes["left"]),
                "right": np.where(leaf, own, nodes["right"]),
                "value": np.where(leaf, nodes["value"], 0.0),
            }
            for name, values in columns.items():
                buffer = getattr(self, name)
                buffer[row] = 0
                buffer[row, : len(nodes)] = torch.from_numpy(np.ascontiguousarray(values)).to(buffer.dtype)


def below(thresholds: np.ndarray) -> np.ndarray:
    """The largest float32 numbers that are not above the thresholds: they split float32 inputs as the thresholds do."""
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _loss(made: np.ndarray, target: np.ndarray, logistic: bool) -> float:
    if logistic:
        return float(np.mean(np.logaddexp(0, made) - target * made))
    return float(np.mean(np.square(made - target)))
