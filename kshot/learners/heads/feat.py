"""FEAT: class prototypes, transformed as a set before queries are compared with them.

Shape legend: N support rows, M query rows, D features, C classes, K vectors of a set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import FractionBelowOne, NonNegativeFloat, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import at_least_float32, in_type_of
from kshot.inner.vmap_overrides import layer_norm
from kshot.learners.heads.distances import class_means, euclidean
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective, classes_present, only_present
from kshot.query_weight import query_weight
from kshot.supplied import Embedding, FeatureCount
from kshot.types import Batch, Task, Tree, tree_map


class SetTransformer(nn.Module):
    r"""One layer of self-attention with one head, a residual and a norm, (K, D) to (K, D), equivariant to order:

    $$ x'_i = \mathrm{LN}\Bigl(x_i + W_O \sum_j \mathrm{softmax}_j\bigl(\tfrac{1}{\sqrt D} (W_Q x_i)^\top W_K x_j\bigr)
       W_V x_j + b_O\Bigr) $$

    Args:
        features: D.
        dropout: dropout rate of what is added to $x_i$.
        attention_dropout: dropout rate of the attention weights, the values of the softmax.
    """

    @check_arguments
    def __init__(self, features: PositiveInt, dropout: FractionBelowOne, attention_dropout: FractionBelowOne) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(features, features, bias=False) for _ in range(3))
        self.out, self.dropout = nn.Linear(features, features), nn.Dropout(dropout)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.scale, self.shift = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=features**-0.5)
        nn.init.xavier_normal_(self.out.weight)

    def forward(self, set_KD: Tensor, visible_KK: Tensor) -> Tensor:
        """Transform vectors; `visible_KK` is a bool mask of the vectors j (columns) that each i (row) attends to."""
        dtype, set_KD = set_KD.dtype, in_type_of(self, set_KD)
        score_KK = self.query(set_KD) @ self.key(set_KD).mT / set_KD.shape[1] ** 0.5
        attention_KK = self.attention_dropout(only_present(score_KK, visible_KK).softmax(1))
        read_KD = attention_KK @ self.value(set_KD)
        moved_KD = set_KD + self.dropout(self.out(read_KD))
        return layer_norm(moved_KD, self.scale.shape, self.scale, self.shift).to(dtype)


class AdaptedPrototypes(Head):
    """Class means, transformed as a set, and squared Euclidean distance to them divided by a temperature."""

    @check_arguments
    def __init__(self, transformer: SetTransformer, temperature: PositiveFloat) -> None:
        super().__init__()
        self.transformer, self.temperature = transformer, temperature

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        present_C = (target_NC * weight_N[:, None]).sum(0) > 0
        visible_CC = present_C.expand(len(present_C), -1)
        return {"prototypes": self.transformer(class_means(feat_ND, target_NC, weight_N), visible_CC)}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return euclidean(feat_MD, state["prototypes"]) / self.temperature


class ContrastiveLoss:
    r"""The query loss plus $\beta$ times a loss by which the transformer keeps the examples of each class together.

    The examples of a class, support and query, are transformed as one set; $\bar z_c$ is the mean of the result, and
    each example shall be nearest to that of its class:

    $$ L_{\text{query}} + \beta \, \frac{1}{\sum w} \sum_i w_i
       \, \mathrm{CE}\bigl(\mathrm{softmax}_c (-\lVert f_i - \bar z_c \rVert^2 / \tau), y_i\bigr) $$

    Args:
        contrast: $\beta$.
    """

    @check_arguments
    def __init__(self, contrast: NonNegativeFloat) -> None:
        self.contrast = contrast

    def __call__(self, learner: HeadLearner, task: Task) -> Tensor:
        head = learner.head
        assert isinstance(head, AdaptedPrototypes)
        features, statistics = learner.embed(task.support)
        state = learner.fit(task.support, features, statistics)
        with query_weight(task.query.weight):
            query_features = learner.embed_query(state, task.query.inputs)
            prediction = learner.score(state, query_features)
        loss = learner.objective.loss(prediction, task.query)
        if self.contrast == 0:
            return loss
        feat = torch.cat([features, query_features])
        labels = tree_map(lambda a, b: torch.cat([a, b]), tuple(task.support)[1:], tuple(task.query)[1:])
        feat = at_least_float32(feat)
        examples = Batch(feat, *(label.to(feat.dtype) for label in labels))
        same_class = (examples.targets * examples.weight[:, None]) @ examples.targets.mT > 0
        centre = class_means(head.transformer(feat, same_class.mT), examples.targets, examples.weight)
        logits = only_present(euclidean(feat, centre) / head.temperature, classes_present(task.support))
        return loss + self.contrast * objectives.classification.loss(logits, examples)


def feat(
    embedding: Embedding,
    *,
    features: FeatureCount,
    temperature: PositiveFloat = 8.0,
    contrast: NonNegativeFloat = 0.1,
    dropout: FractionBelowOne = 0.5,
    attention_dropout: FractionBelowOne = 0.1,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""FEAT: class means, adapted to the task by a transformer over their set, and the distance to them.

    $$ \{\psi_c\} = \mathrm{Transformer}(\{p_c\}), \qquad
       p(y = c \mid x) = \mathrm{softmax}_c \bigl(-\lVert f_\theta(x) - \psi_c \rVert^2 / \tau\bigr) $$

    The outer loss is the query loss with a contrastive regulariser (see `SetTransformer` and `ContrastiveLoss`).

    Args:
        embedding: any module, best pretrained: inputs (n, ...) to features (n, ...).
        features: D, width of the embedding's output.
        temperature: $\tau$.
        contrast: $\beta$, the weight of the regulariser.
        dropout: dropout rate of what the transformer adds to a class mean.
        attention_dropout: dropout rate of the transformer's attention weights.
        objective, batchnorm: as in `protonet`.

    Example:
        >>> learner = feat(nn.Flatten(), features=3)
        >>> support = kshot.Batch.of(torch.eye(3), torch.tensor([0, 1, 2]), ways=3)
        >>> learner.adapt(support)["head"]["prototypes"].shape
        torch.Size([3, 3])

    References:
        Ye, Hu, Zhan, Sha: Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions, CVPR 2020,
        arXiv:1812.03664.

    Deviations:
        Both losses share one temperature, where the authors' code has two. Theirs are 16 to 64, with which training
        starts slowly on small embeddings. Class scores are distances, which is an option of their code; its default is
        the inner product of a query with an adapted prototype of unit length.
    """
    head = AdaptedPrototypes(SetTransformer(features, dropout, attention_dropout), temperature)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm, outer=ContrastiveLoss(contrast))
