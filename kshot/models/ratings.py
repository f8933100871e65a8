"""Models of ratings, on the index of an item and optional features of item and user.

Each computes features that all users share and has a linear `head`, which alone can be adapted to a user.

Shape legend: n ratings, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kshot.annotations import PositiveInt, PositiveInts
from kshot.models.backbones import mlp
from kshot.supplied import ItemCounts, ItemFeatures, NumItems, NumOutputs, RatingFeatures, UserFeatures

Side = tuple[Tensor | None, Tensor | None, Tensor | None]
"""The features (n, F) of the items and of the user, and the items' means; None for what there is not."""


class RatingModel(nn.Module, ABC):
    """Base class: `features` (n, F) of ratings and a linear `head`, or none if `outputs` is None."""

    def __init__(self, width: int, outputs: int | None) -> None:
        super().__init__()
        self.width = width
        self.head = nn.Identity() if outputs is None else nn.Linear(width, outputs)

    @abstractmethod
    def features(self, item: Tensor, side: Side) -> Tensor:
        """Features (n, F) of rated items (n,)."""

    def forward(
        self,
        item: Tensor,
        item_features: Tensor | None = None,
        user_features: Tensor | None = None,
        item_mean: Tensor | None = None,
        item_factors: Tensor | None = None,
    ) -> Tensor:
        if item_factors is not None:
            item_features = item_factors if item_features is None else torch.cat([item_features, item_factors], -1)
        return self.head(self.features(item, (item_features, user_features, item_mean)))


class RatingMlp(RatingModel):
    """See `rating_mlp`."""

    def __init__(self, items: int, features: int, outputs: int | None, embedding: int, hidden: Sequence[int]) -> None:
        super().__init__(hidden[-1], outputs)
        self.embedding = nn.Embedding(items + 1, embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.body = mlp(embedding + features, None, hidden).get_submodule("body")

    def features(self, item: Tensor, side: Side) -> Tensor:
        return self.body(_joined(self.embedding(item), *side))


class TwoTower(RatingModel):
    """See `two_tower`."""

    def __init__(
        self, items: int, item_features: int, user_features: int, outputs: int | None, width: int, hidden: int
    ) -> None:
        super().__init__(width, outputs)
        self.embedding = nn.Embedding(items + 1, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.item_tower = _tower(width + item_features, hidden, width)
        self.user_tower = _tower(user_features, hidden, width) if user_features else None

    def features(self, item: Tensor, side: Side) -> Tensor:
        item_features, user_features, item_mean = side
        items = self.item_tower(_joined(self.embedding(item), item_features, item_mean))
        return items if self.user_tower is None else items * (1 + self.user_tower(user_features))


class Factorisation(RatingModel):
    """See `factorisation`."""

    popularity: Tensor
    penalty_weight: Tensor

    def __init__(self, counts: Sequence[int], features: int, outputs: int | None, factors: int, hidden: int) -> None:
        super().__init__(factors + 1, outputs)
        num_ratings = torch.tensor([0, *counts], dtype=torch.float32)
        log_count = num_ratings.log1p()
        std = log_count.std(correction=0).clamp_min(1e-6) if len(counts) > 1 else torch.ones(())
        scaled = (log_count - log_count.mean()) / std
        self.register_buffer("popularity", torch.stack([scaled, scaled.square(), (log_count == 0).float()], 1))
        self.offset = nn.Embedding(len(counts) + 1, 1, padding_idx=0)
        self.factors = nn.Embedding(len(counts) + 1, factors, padding_idx=0)
        self.register_buffer("penalty_weight", 1 / (1 + num_ratings / PENALTY_HALF_COUNT))
        nn.init.zeros_(self.offset.weight)
        nn.init.normal_(self.factors.weight, std=0.05)
        with torch.no_grad():
            self.factors.weight[0] = 0
        self.side = nn.Linear(features + 3, factors)
        nn.init.normal_(self.side.weight, std=0.05)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        self.side_offset = nn.Sequential(nn.Linear(features + 3, hidden), nn.GELU(), last)

    def features(self, item: Tensor, side: Side) -> Tensor:
        joined, item_mean = _joined(self.popularity[item], *side), side[2]
        offset = self.offset(item) + self.side_offset(joined)
        if item_mean is not None:
            offset = offset + item_mean[..., :1]
        return torch.cat([offset, self.factors(item) + self.side(joined)], -1)

    def penalty(self, item: Tensor) -> Tensor:
        """The L2 penalty of the item-specific offset and factors, for each of the ratings of items (n,).

        The penalty per rating decreases with the number of ratings of the item: in sum it acts as a Gaussian prior.
        """
        squares = self.offset(item).square().sum(-1) / 4 + self.factors(item).square().sum(-1)
        return self.penalty_weight[item] * squares


PENALTY_HALF_COUNT = 12.0  # ratings of an item at which its penalty per rating is halved


def _joined(*features: Tensor | None) -> Tensor:
    return torch.cat([feature for feature in features if feature is not None], -1)


def _tower(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def rating_mlp(
    items: NumItems,
    features: RatingFeatures,
    outputs: NumOutputs | None = 1,
    *,
    embedding: PositiveInt = 16,
    hidden: PositiveInts = (64, 32),
) -> RatingMlp:
    """A perceptron on an item embedding (n,) and features (n, F): to (n, outputs).

    Args:
        items: number of items with an embedding; index 0, for items without training ratings, has an additional one.
        features: total number of features of items and users.
        outputs: outputs of the head; None for no head.
        embedding: width of the item embedding.
        hidden: widths of the hidden layers.

    Example:
        >>> rating_mlp(items=3, features=5)(torch.tensor([0, 3]), torch.zeros(2, 5)).shape
        torch.Size([2, 1])

    References:
        Lee, Im, Jang, Cho, Chung: MeLU, KDD 2019, arXiv:1908.00413, section 4.1: embeddings, then decision layers
        (those that `melu` adapts).
    """
    return RatingMlp(items, features, outputs, embedding, hidden)


def two_tower(
    items: NumItems,
    item_features: ItemFeatures,
    user_features: UserFeatures = 0,
    outputs: NumOutputs | None = 1,
    *,
    width: PositiveInt = 32,
    hidden: PositiveInt = 64,
) -> TwoTower:
    r"""An item tower and a user tower, whose elementwise product is the input of a linear head.

    $$ \hat y = w^\top \bigl(g(e_i, x_i) \odot (1 + h(x_u))\bigr) + b $$

    With one output and $w = 1$ this is the inner product of both towers; adapting $w$ replaces the user tower.

    Args:
        items, outputs: as in `rating_mlp`.
        item_features, user_features: numbers of features; without user features there is no user tower.
        width, hidden: widths of each tower's output and hidden layer.

    Example:
        >>> two_tower(3, 5)(torch.tensor([0, 3]), torch.zeros(2, 5)).shape
        torch.Size([2, 1])

    References:
        Yi et al.: Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019.
    """
    return TwoTower(items, item_features, user_features, outputs, width, hidden)


def factorisation(
    counts: ItemCounts,
    features: RatingFeatures,
    outputs: NumOutputs | None = 1,
    *,
    factors: PositiveInt = 24,
    hidden: PositiveInt = 32,
) -> Factorisation:
    r"""A factorisation with side features: item-specific offsets and factors, plus functions of the features.

    $$ \phi(x) = \bigl(b_i + g(x), \; q_i + W x\bigr), \qquad \hat y = w^\top \phi(x) + c $$

    $b_i$ and $q_i$ are zero for items without training ratings. The number of training ratings of an item is among the
    features.

    Args:
        counts: number of training ratings of each item, from index 1.
        features, outputs: as in `rating_mlp`; without a head the features are (n, factors + 1), the offset first.
        factors, hidden: number of factors of an item, and hidden width of the perceptron $g$.

    Example:
        >>> factorisation([5, 1, 9], features=5, factors=4)(torch.tensor([0, 3]), torch.zeros(2, 5)).shape
        torch.Size([2, 1])

    References:
        Koren, Bell, Volinsky: Matrix Factorization Techniques for Recommender Systems, IEEE Computer 42(8), 2009.
    """
    return Factorisation(counts, features, outputs, factors, hidden)
