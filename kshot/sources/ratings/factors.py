"""Factors of items from the users that they share: those of EASE and those of implicit ALS.

Shape legend: n ratings, U users, I items, D factors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

MOST_EXACT = 4096  # users or items up to which the decomposition is exact


def spectrum_of(log: Any, most: int) -> tuple[np.ndarray, np.ndarray]:
    r"""The right singular vectors of a sparse matrix (U, I), float32 (I, D), and the squared singular values (D,).

    $D$ is the rank, or `most` if both sides are longer than `MOST_EXACT`, in which case the largest are approximated
    by subspace iteration (Halko, Martinsson, Tropp, SIAM Review 53(2), 2011, algorithm 4.4).
    """
    users, items = log.shape
    if min(users, items) > MOST_EXACT:
        return _approximate(log, most)
    wide = users < items
    gram = (log @ log.T if wide else log.T @ log).toarray().astype(np.float64)
    squares, vectors = np.linalg.eigh(gram)
    real = squares > 1e-9 * max(squares[-1], 1e-9) * len(squares)
    squares, vectors = squares[real][::-1], vectors[:, real][:, ::-1]
    right = (log.T @ vectors) / np.sqrt(squares) if wide else vectors
    return np.ascontiguousarray(right, np.float32), squares


def _approximate(log: Any, most: int, rounds: int = 4, oversampling: int = 16) -> tuple[np.ndarray, np.ndarray]:
    basis = np.random.default_rng(0).normal(size=(log.shape[1], most + oversampling)).astype(np.float32)
    for _ in range(rounds):
        basis = np.linalg.qr(log.T @ (log @ basis))[0]
    _, values, right = np.linalg.svd(log @ basis, full_matrices=False)
    return np.ascontiguousarray((basis @ right.T)[:, :most], np.float32), values[:most].astype(np.float64) ** 2


class ItemFactors(NamedTuple):
    r"""Factors of items, such that items which the same users clicked have a large inner product.

    From $X = U \Sigma Z^\top$ with $X_{ui} = 1$ if training user $u$ clicked item $i$, item $i$ has the features
    $(\log (1 + n_i) / \log (1 + \max n), \; z_i \sqrt{\sigma^2 / (\sigma^2 + \lambda)})$: popularity, and the factors
    of EASE, whose similarity of two items is the latter's inner product. `IMPLICIT` further factors do the same for
    implicit ALS, $y_i (Y^\top Y + \lambda I)^{-1/2}$ with its factors $Y$ of items. Those for a training user are
    fitted without the users of the same fold, as those for a new user are fitted without that user.

    Attributes:
        tables: float32 (FOLDS + 1, I + 1, 1 + D + IMPLICIT), features of each item for the users of each fold, and for
            new users.
        fold_of: int8 (n,), the fold of the user of each rating.
    """

    tables: np.ndarray
    fold_of: np.ndarray

    @classmethod
    def fit(cls, user_of: np.ndarray, numbers: np.ndarray, train: np.ndarray, num_items: int, size: int) -> ItemFactors:
        """Fit to the training ratings of a mask (n,), by users (n,) of items (n,) numbered from 1; `size` is D."""
        users = np.full(user_of.max() + 1, -1)
        known = np.unique(user_of[train])
        users[known] = np.random.default_rng(0).permutation(len(known))
        fold_of = np.where(users[user_of] < 0, FOLDS, users[user_of] % FOLDS).astype(np.int8)
        tables = np.zeros((FOLDS + 1, num_items + 1, 1 + size + IMPLICIT), np.float32)
        for fold in range(FOLDS + 1):
            mask = train & (fold_of != fold)
            if mask.any():
                tables[fold] = _features(users[user_of[mask]], numbers[mask], num_items, size)
        return cls(tables, fold_of)

    def features(self, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float32 (..., 1 + D + IMPLICIT) for item numbers (...), as for the users of ratings (...); 0 if unknown."""
        return self.tables[self.fold_of[rows], items]


FOLDS = 5
RIDGE_SHARE = 0.07  # the ridge penalty, as a share of the number of clicks: the best of EASE on films and on planes
IMPLICIT = 32  # factors of implicit ALS
ALPHA, L2 = 3.0, 10.0  # of implicit ALS: the best of those tried on films and on planes


def _features(users: np.ndarray, numbers: np.ndarray, num_items: int, size: int) -> np.ndarray:
    """The features (I + 1, 1 + D + IMPLICIT) of items from clicks (n,); 0 for factors beyond the rank."""
    from scipy.sparse import csr_matrix

    log = csr_matrix((np.ones(len(users), np.float32), (users, numbers)), (users.max() + 1, num_items + 1))
    popularity = np.log1p(np.bincount(numbers, minlength=num_items + 1))
    directions, squares = spectrum_of(log, size)
    directions, squares = directions[:, :size], squares[:size]
    features = np.zeros((num_items + 1, 1 + size + IMPLICIT), np.float32)
    features[:, 0] = popularity / popularity.max()
    features[:, 1 : 1 + len(squares)] = directions * np.sqrt(squares / (squares + RIDGE_SHARE * len(users)))
    of_items = implicit_factors(log, log.T.tocsr(), IMPLICIT, ALPHA, L2)
    values, vectors = np.linalg.eigh(of_items.T @ of_items + L2 * np.eye(IMPLICIT))
    features[:, 1 + size :] = of_items @ (vectors / np.sqrt(values))[:, ::-1]
    return features


def implicit_factors(
    by_user: Any, by_item: Any, factors: int, alpha: float, l2: float, rounds: int = 8, seed: int = 0
) -> np.ndarray:
    r"""Factors (I, D) of items by implicit ALS, from sparse clicks (U, I) and (I, U); see `confident_ridge`.

    References:
        Hu, Koren, Volinsky: Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008.
    """
    of_items = np.random.default_rng(seed).normal(0, 0.1, (by_item.shape[0], factors))
    of_items *= np.diff(by_item.indptr)[:, None] > 0
    for _ in range(rounds):
        of_users = confident_ridge(by_user, of_items, alpha, l2)
        of_items = confident_ridge(by_item, of_users, alpha, l2)
    return of_items


def confident_ridge(clicks: Any, features: np.ndarray, alpha: float, l2: float, chunk: int = 1024) -> np.ndarray:
    r"""The factors (n, D) of each row of clicks, sparse (n, m), from the features $Y$ (m, D) of its columns:

    $$ x = (Y^\top Y + \alpha \, Y_S^\top Y_S + \lambda I)^{-1} (1 + \alpha) \, Y_S^\top 1 $$

    where $Y_S$ are the features of the columns that it clicked.
    """
    size = features.shape[1]
    upper = np.triu_indices(size)
    products = (features[:, upper[0]] * features[:, upper[1]]).astype(np.float32)
    base = features.T @ features + l2 * np.eye(size)
    solved = np.empty((clicks.shape[0], size))
    for start in range(0, len(solved), chunk):
        rows = clicks[start : start + chunk]
        gram = np.empty((rows.shape[0], size, size))
        gram[:, *upper] = gram[:, *upper[::-1]] = rows @ products
        solved[start : start + chunk] = np.linalg.solve(
            base + alpha * gram, (1 + alpha) * (rows @ features)[..., None]
        )[..., 0]
    return solved
