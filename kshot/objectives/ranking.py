"""How good a ranking is: of items by a score, against what they turned out to be worth.

Items of equal score are in no order: what a cut would take of them is their average, over all orders they could have.

Shape legend: n items.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _ranked(scores: Tensor, worth: Tensor) -> Tensor:
    """The worth (n,) of the items from the highest score to the lowest, averaged within equal scores."""
    order = scores.argsort(descending=True, stable=True)
    _, group, size = torch.unique_consecutive(scores[order], return_inverse=True, return_counts=True)
    total = torch.zeros(len(size), dtype=worth.dtype, device=worth.device).index_add_(0, group, worth[order])
    return (total / size)[group]


def ndcg(scores: Tensor, worth: Tensor, k: int) -> Tensor:
    r"""Normalised discounted cumulative gain of the first k: what the ranking gives, over what the best one would.

    $$ \text{DCG@k} = \sum_{j=1}^{k} \frac{g_{\pi(j)}}{\log_2 (1 + j)}, \qquad \text{nDCG@k} =
       \frac{\text{DCG@k}}{\max_\pi \text{DCG@k}} $$

    Args:
        scores: (n,), by which items are ranked.
        worth: (n,) $g$, the gains, 0 or more; a rating, or 1 for what was clicked.
        k: how many of the ranking count.

    Returns:
        (), from 0 to 1; 0 where nothing is worth anything.

    Example:
        >>> ndcg(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 5.0, 0.0]), k=1)
        tensor(0.2000)

    References:
        Järvelin, Kekäläinen: Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4), 2002. Ties as in
        McSherry, Najork, ECIR 2008, and scikit-learn's `ndcg_score`, which this equals.
    """
    k = min(k, len(scores))
    discount = 1 / torch.arange(2, k + 2, dtype=worth.dtype, device=worth.device).log2()
    best = discount @ worth.sort(descending=True).values[:k]
    got = discount @ _ranked(scores, worth)[:k]
    return got / best.clamp_min(torch.finfo(worth.dtype).tiny)


def precision(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """The share of the first k items that are relevant (n,), 0 or 1; of all items where there are fewer.

    Example:
        >>> precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]), k=2)
        tensor(0.5000)
    """
    return _ranked(scores, relevant)[:k].mean()


def recall(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """The share of the relevant items (n,), 0 or 1, that are among the first k; 0 where none is relevant.

    Example:
        >>> recall(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]), k=2)
        tensor(0.5000)
    """
    return _ranked(scores, relevant)[:k].sum() / relevant.sum().clamp_min(1)


def coverage(shown: Tensor, items: int) -> Tensor:
    r"""Catalogue coverage: the share of all items that are shown to somebody, $|\bigcup_u R_u| / I$.

    It grows with the number of users, so that figures compare for the same users alone, and ends at $U k / I$ or 1.

    Args:
        shown: (U, k) the numbers of the first k items of each user's ranking.
        items: how many there are, I.

    Example:
        >>> coverage(torch.tensor([[0, 1], [0, 2], [0, 1]]), items=6)
        tensor(0.5000)

    References:
        Ge, Delgado-Battenfeld, Jannach: Beyond accuracy: evaluating recommender systems by coverage and serendipity,
        RecSys 2010, section 3.1.
    """
    return torch.tensor(len(shown.unique()) / items)
