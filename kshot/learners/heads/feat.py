"""FEAT: class prototypes that see each other before queries are compared with them.

Shape legend: N support rows, M query rows, D features, C classes, K vectors of a set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import FractionBelowOne, NonNegativeFloat, PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.inner.vmap_overrides import layer_norm
from kshot.learners.heads.protonet import Head, HeadLearner, class_means, euclidean
from kshot.objectives import Objective, classes_present, only_present
from kshot.types import Batch, Task, Tree, tree_map


class SetTransformer(nn.Module):
    r"""One layer of self-attention with one head, a residual and a norm, (K, D) to (K, D), without any order:

    $$ x'_i = \mathrm{LN}\Bigl(x_i + W_O \sum_j \mathrm{softmax}_j\bigl(\tfrac{1}{\sqrt D} (W_Q x_i)^\top W_K x_j\bigr)
       W_V x_j\Bigr) $$

    Args:
        features: D.
        dropout: of what is added to $x_i$.
    """

    def __init__(self, features: int, dropout: float) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be the width of the embedding's output, at least 1, got {features}")
        self.query, self.key, self.value = (nn.Linear(features, features, bias=False) for _ in range(3))
        self.out, self.dropout = nn.Linear(features, features), nn.Dropout(dropout)
        self.scale, self.shift = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        for part in (self.query, self.key, self.value):
            nn.init.normal_(part.weight, std=features**-0.5)

    def forward(self, set_KD: Tensor, seen_KK: Tensor) -> Tensor:
        """Vectors, and a bool that says of which j each i sees."""
        near_KK = self.query(set_KD) @ self.key(set_KD).mT / set_KD.shape[1] ** 0.5
        read_KD = only_present(near_KK, seen_KK).softmax(1) @ self.value(set_KD)
        return layer_norm(set_KD + self.dropout(self.out(read_KD)), self.scale.shape, self.scale, self.shift)


class AdaptedPrototypes(Head):
    """Class means, transformed as a set, and squared Euclidean distance to them over a temperature."""

    def __init__(self, transformer: SetTransformer, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.transformer, self.temperature = transformer, temperature

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        present_C = (target_NC * weight_N[:, None]).sum(0) > 0
        seen_CC = present_C.expand(len(present_C), -1)
        return {"prototypes": self.transformer(class_means(feat_ND, target_NC, weight_N), seen_CC)}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return euclidean(feat_MD, state["prototypes"]) / self.temperature


class Contrast:
    r"""The query loss, and $\beta$ times a loss by which the transformer keeps each class's own examples together.

    The examples of a class, support and query, are transformed as a set of their own; $\bar z_c$ is the mean of what
    comes out, and each example is to be nearest to that of its class:

    $$ L_{\text{query}} + \beta \, \frac{1}{\sum w} \sum_i w_i
       \, \mathrm{CE}\bigl(\mathrm{softmax}_c (-\lVert f_i - \bar z_c \rVert^2 / \tau), y_i\bigr) $$
    """

    def __init__(self, weight: float) -> None:
        if not weight >= 0:
            raise ValueError(f"contrast must be at least 0, got {weight}")
        self.weight = weight

    def __call__(self, learner: HeadLearner, task: Task) -> Tensor:
        head = learner.head
        assert isinstance(head, AdaptedPrototypes)
        features, statistics = learner.embed(task.support)
        state = learner.fit(task.support, features, statistics)
        of_query = learner.embed_query(state, task.query.inputs)
        loss = learner.objective.loss(learner.score(state, of_query), task.query)
        if self.weight == 0:
            return loss
        feat = torch.cat([features, of_query])
        both = Batch(feat, *tree_map(lambda a, b: torch.cat([a, b]), tuple(task.support)[1:], tuple(task.query)[1:]))
        same = (both.targets * both.weight[:, None]) @ both.targets.mT > 0
        centre = class_means(head.transformer(feat, same.mT), both.targets, both.weight)
        logits = only_present(euclidean(feat, centre) / head.temperature, classes_present(task.support))
        return loss + self.weight * objectives.classification.loss(logits, both)


def feat(
    embedding: nn.Module,
    *,
    features: int,
    temperature: PositiveFloat = 8.0,
    contrast: NonNegativeFloat = 0.1,
    dropout: FractionBelowOne = 0.5,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""FEAT: class means, adapted to the task by a transformer over their set, and the distance to them.

    $$ \{\psi_c\} = \mathrm{Transformer}(\{p_c\}), \qquad
       p(y = c \mid x) = \mathrm{softmax}_c \bigl(-\lVert f_\theta(x) - \psi_c \rVert^2 / \tau\bigr) $$

    It is trained on the query loss and a contrastive regulariser (see `SetTransformer` and `Contrast`).

    Args:
        embedding: any module, best pretrained: inputs (n, ...) to features (n, ...).
        features: D, how many features that makes for an example.
        temperature: $\tau$.
        contrast: $\beta$, the weight of the regulariser.
        dropout: of what the transformer adds to a class mean.
        objective: what the tasks ask.
        batchnorm: "support" (inductive), "query" (transductive) or "running".

    Returns:
        A learner for any number of ways and shots.

    Raises:
        ValueError: numbers out of bounds.

    Example:
        >>> learner = feat(nn.Flatten(), features=3)
        >>> support = kshot.Batch.of(torch.eye(3), torch.tensor([0, 1, 2]), ways=3)
        >>> learner.adapt(support)["head"]["prototypes"].shape
        torch.Size([3, 3])

    References:
        Ye, Hu, Zhan, Sha: Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions, CVPR 2020,
        arXiv:1812.03664.

    Deviations:
        One temperature serves both losses, where the authors' code has two. Theirs are 16 to 64, with which training
        starts slowly on small embeddings.
    """
    head = AdaptedPrototypes(SetTransformer(features, dropout), temperature)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm, outer=Contrast(contrast))
