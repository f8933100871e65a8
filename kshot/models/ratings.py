"""A model of ratings: an embedding of the item beside the features of item and user, and a perceptron over both.

Shape legend: n ratings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kshot.models.backbones import mlp


class RatingMlp(nn.Module):
    """See `rating_mlp`. `embedding` and the layers in `body` make features of an item, `head` a prediction."""

    def __init__(self, items: int, features: int, outputs: int, embedding: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(items + 1, embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        layers = mlp(embedding + features, outputs, hidden)
        self.body, self.head = layers.get_submodule("body"), layers.get_submodule("head")

    def forward(self, item: Tensor, item_features: Tensor | None = None, user_features: Tensor | None = None) -> Tensor:
        given = [features for features in (item_features, user_features) if features is not None]
        return self.head(self.body(torch.cat([self.embedding(item), *given], -1)))


def rating_mlp(
    items: int, features: int, outputs: int = 1, *, embedding: int = 16, hidden: Sequence[int] = (64, 32)
) -> RatingMlp:
    """A perceptron over what `kshot.tasks.ratings` gives: item (n,) and features (n, F) to (n, outputs).

    Args:
        items: how many items have an embedding of their own; number 0, for items not trained on, has one more.
        features: of items and users in all.
        outputs: of the head.
        embedding: numbers of an item's embedding.
        hidden: widths of the hidden layers.

    Example:
        >>> rating_mlp(items=3, features=5)(torch.tensor([0, 3]), torch.zeros(2, 5)).shape
        torch.Size([2, 1])

    References:
        Lee, Im, Jang, Cho, Chung: MeLU, KDD 2019, arXiv:1908.00413, section 4.1: embeddings, then decision layers. It
        adapts the latter alone, which is `adaptable="[bh]*"`.
    """
    return RatingMlp(items, features, outputs, embedding, hidden)
