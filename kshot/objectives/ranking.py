"""Metrics of rankings of items by score.

Items of equal scores have no order: each metric is the average over all orders of them.

Shape legend: n items.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _ranked(scores: Tensor, gains: Tensor) -> Tensor:
    """The gains (n,) of items by descending score, averaged over equal scores."""
    order = scores.argsort(descending=True, stable=True)
    _, group, size = torch.unique_consecutive(scores[order], return_inverse=True, return_counts=True)
    total = torch.zeros(len(size), dtype=gains.dtype, device=gains.device).index_add_(0, group, gains[order])
    return (total / size)[group]


def ndcg(scores: Tensor, gains: Tensor, k: int) -> Tensor:
    r"""Normalised discounted cumulative gain of the first k items:

    $$ \text{DCG@k} = \sum_{j=1}^{k} \frac{g_{\pi(j)}}{\log_2 (1 + j)}, \qquad \text{nDCG@k} =
       \frac{\text{DCG@k}}{\max_\pi \text{DCG@k}} $$

    Args:
        scores: (n,) scores by which items are ranked.
        gains: (n,) $g \ge 0$; ratings, or 1 for clicked items. The result is 0 if all gains are 0.
        k: number of items that count.

    Example:
        >>> ndcg(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 5.0, 0.0]), k=1)
        tensor(0.2000)

    References:
        Järvelin, Kekäläinen: Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4), 2002. Ties as in
        McSherry, Najork, ECIR 2008. Equal to scikit-learn's `ndcg_score`, which is slower for one user at a time.
    """
    k = min(k, len(scores))
    discount = 1 / torch.arange(2, k + 2, dtype=gains.dtype, device=gains.device).log2()
    ideal = discount @ gains.sort(descending=True).values[:k]
    dcg = discount @ _ranked(scores, gains)[:k]
    return dcg / ideal.clamp_min(torch.finfo(gains.dtype).tiny)


def precision(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Fraction of the first k items, or of all if there are fewer, that are relevant; `relevant` (n,) is 0 or 1."""
    return _ranked(scores, relevant)[:k].mean()


def recall(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Fraction of the relevant items that are among the first k, 0 if none is relevant; `relevant` (n,) is 0 or 1."""
    return _ranked(scores, relevant)[:k].sum() / relevant.sum().clamp_min(1)


def coverage(shown: Tensor, items: int) -> Tensor:
    r"""Catalogue coverage: the fraction of all items that are shown to any user, $|\bigcup_u R_u| / I$.

    It grows with the number of users, up to $\min(U k / I, 1)$, so that only values for the same users are comparable.
    `shown` (U, k) are the indices of the first k items of each user's ranking, of I `items`.

    Example:
        >>> coverage(torch.tensor([[0, 1], [0, 2], [0, 1]]), items=6)
        tensor(0.5000)

    References:
        Ge, Delgado-Battenfeld, Jannach: Beyond accuracy: evaluating recommender systems by coverage and serendipity,
        RecSys 2010, section 3.1.
    """
    return torch.tensor(len(shown.unique()) / items)


def auc(scores: Tensor, relevant: Tensor) -> Tensor:
    r"""Area under the ROC curve: the probability that a relevant item is ranked above another, where ties count half.

    `relevant` (n,) is 0 or 1; the result is 0.5 if all items are relevant, or none.

    Example:
        >>> auc(torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
        tensor(0.8750)
    """
    positive, negative = scores[relevant > 0], scores[relevant <= 0].sort().values
    if not len(positive) or not len(negative):
        return torch.full((), 0.5, dtype=relevant.dtype, device=relevant.device)
    below, upto = (torch.searchsorted(negative, positive, right=right) for right in (False, True))
    return (below + upto).to(relevant.dtype).mean() / (2 * len(negative))
