"""Models of ratings: over the number of an item, and the features of item and user where there are some.

Each has a `body` that makes features of what is rated and a `head`, linear, that makes a prediction of those: adapting
`head` alone gives a user a taste of their own over features that all users share.

Shape legend: n ratings, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kshot.annotations import PositiveInt, PositiveInts
from kshot.models.backbones import mlp


class RatingModel(nn.Module, ABC):
    """What the models have in common: `features` (n, F) of what is rated, and a `head`, if there are outputs."""

    def __init__(self, width: int, outputs: int | None) -> None:
        super().__init__()
        self.width = width
        self.head = nn.Identity() if outputs is None else nn.Linear(width, outputs)

    @abstractmethod
    def features(
        self, item: Tensor, item_features: Tensor | None, user_features: Tensor | None, item_mean: Tensor | None
    ) -> Tensor:
        """What is made of rated items (n,) and what is known of them and the user: (n, F)."""

    def forward(
        self,
        item: Tensor,
        item_features: Tensor | None = None,
        user_features: Tensor | None = None,
        item_mean: Tensor | None = None,
    ) -> Tensor:
        return self.head(self.features(item, item_features, user_features, item_mean))


class RatingMlp(RatingModel):
    """See `rating_mlp`."""

    def __init__(self, items: int, features: int, outputs: int | None, embedding: int, hidden: Sequence[int]) -> None:
        super().__init__(hidden[-1], outputs)
        self.embedding = nn.Embedding(items + 1, embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.body = mlp(embedding + features, None, hidden).get_submodule("body")

    def features(
        self, item: Tensor, item_features: Tensor | None, user_features: Tensor | None, item_mean: Tensor | None
    ) -> Tensor:
        return self.body(torch.cat([self.embedding(item), *_given(item_features, user_features, item_mean)], -1))


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

    def features(
        self, item: Tensor, item_features: Tensor | None, user_features: Tensor | None, item_mean: Tensor | None
    ) -> Tensor:
        made = self.item_tower(torch.cat([self.embedding(item), *_given(item_features, item_mean)], -1))
        return made if self.user_tower is None else made * (1 + self.user_tower(user_features))


class Factorisation(RatingModel):
    """See `factorisation`."""

    popularity: Tensor
    held: Tensor

    def __init__(
        self,
        counts: Sequence[int],
        features: int,
        outputs: int | None,
        factors: int,
        hidden: int,
    ) -> None:
        super().__init__(factors + 1, outputs)
        counted = torch.tensor([0, *counts], dtype=torch.float32)
        seen = counted.log1p()
        spread = seen.std(correction=0).clamp_min(1e-6) if len(counts) > 1 else torch.ones(())
        known = (seen - seen.mean()) / spread
        self.register_buffer("popularity", torch.stack([known, known.square(), (seen == 0).float()], 1))
        self.offset = nn.Embedding(len(counts) + 1, 1, padding_idx=0)
        self.factors = nn.Embedding(len(counts) + 1, factors, padding_idx=0)
        self.register_buffer("held", 1 / (1 + counted / FEW))
        nn.init.zeros_(self.offset.weight)
        nn.init.normal_(self.factors.weight, std=0.05)
        with torch.no_grad():
            self.factors.weight[0] = 0
        self.side = nn.Linear(features + 3, factors)
        nn.init.normal_(self.side.weight, std=0.05)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        self.side_offset = nn.Sequential(nn.Linear(features + 3, hidden), nn.GELU(), last)

    def features(
        self, item: Tensor, item_features: Tensor | None, user_features: Tensor | None, item_mean: Tensor | None
    ) -> Tensor:
        side = torch.cat([self.popularity[item], *_given(item_features, user_features, item_mean)], -1)
        offset = self.offset(item) + self.side_offset(side)
        if item_mean is not None:
            offset = offset + item_mean[..., :1]
        return torch.cat([offset, self.factors(item) + self.side(side)], -1)

    def penalty(self, item: Tensor) -> Tensor:
        """What ratings (n,) cost for how far their items' own offset and factors are from 0.

        An item with more ratings pays less for each: in all it is held back as by a Gaussian prior.
        """
        own = self.offset(item).square().sum(-1) / 4 + self.factors(item).square().sum(-1)
        return self.held[item] * own


FEW = 12.0  # ratings of an item from which on it is held back less for each of them


def _given(*features: Tensor | None) -> list[Tensor]:
    return [each for each in features if each is not None]


def _tower(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def rating_mlp(
    items: int,
    features: int,
    outputs: int | None = 1,
    *,
    embedding: PositiveInt = 16,
    hidden: PositiveInts = (64, 32),
) -> RatingMlp:
    """A perceptron over what `kshot.sources.ratings.source` gives: item (n,) and features (n, F) to (n, outputs).

    Args:
        items: how many items have an embedding of their own; number 0, for items not trained on, has one more.
        features: of items and users in all.
        outputs: of the head; None for no head, and so features.
        embedding: numbers of an item's embedding.
        hidden: widths of the hidden layers.

    Example:
        >>> rating_mlp(items=3, features=5)(torch.tensor([0, 3]), torch.zeros(2, 5)).shape
        torch.Size([2, 1])

    References:
        Lee, Im, Jang, Cho, Chung: MeLU, KDD 2019, arXiv:1908.00413, section 4.1: embeddings, then decision layers. It
        adapts the latter alone, as `melu` does.
    """
    return RatingMlp(items, features, outputs, embedding, hidden)


def two_tower(
    items: int,
    item_features: int,
    user_features: int = 0,
    outputs: int | None = 1,
    *,
    width: PositiveInt = 32,
    hidden: PositiveInt = 64,
) -> TwoTower:
    r"""A tower for items and one for users; their vectors meet in a product, element by element, before a linear head.

    $$ \hat y = w^\top \bigl(g(e_i, x_i) \odot (1 + h(x_u))\bigr) + b $$

    With one output and $w = 1$ this is the inner product of both towers; adapting $w$ is a user's own tower.

    Args:
        items, outputs: as in `rating_mlp`.
        item_features, user_features: how many; without those of users there is no user tower.
        width: of the vectors.
        hidden: of each tower's hidden layer.

    Example:
        >>> two_tower(3, 5)(torch.tensor([0, 3]), torch.zeros(2, 5)).shape
        torch.Size([2, 1])

    References:
        Yi et al.: Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019.
    """
    return TwoTower(items, item_features, user_features, outputs, width, hidden)


def factorisation(
    counts: Sequence[int],
    features: int,
    outputs: int | None = 1,
    *,
    factors: PositiveInt = 24,
    hidden: PositiveInt = 32,
) -> Factorisation:
    r"""A factorisation with side features: an item's offset and factors are its own, plus what its features tell.

    $$ \phi(x) = \bigl(b_i + g(x), \; q_i + W x\bigr), \qquad \hat y = w^\top \phi(x) + c $$

    What is an item's own is zero for items not trained on, so that they are what their features say. How often an item
    was rated in training is one of the features.

    Args:
        counts: the training ratings of each item, numbers 1, 2 … in order.
        features: of items and users in all.
        outputs: of the head; None for no head, and so features (n, factors + 1), the offset first.
        factors: of an item.
        hidden: of the perceptron $g$.

    Example:
        >>> factorisation([5, 1, 9], features=5, factors=4)(torch.tensor([0, 3]), torch.zeros(2, 5)).shape
        torch.Size([2, 1])

    References:
        Koren, Bell, Volinsky: Matrix Factorization Techniques for Recommender Systems, IEEE Computer 42(8), 2009.
    """
    return Factorisation(counts, features, outputs, factors, hidden)
