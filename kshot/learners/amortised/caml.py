"""CAML: a transformer that reads a support set of frozen features, and needs no tuning on a new domain.

Shape legend: N support rows, M query rows, D features, C classes of a task, K label vectors, d width.
"""

from __future__ import annotations

from typing import Annotated, cast

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.functional import pad

from kshot import objectives
from kshot.annotations import MOST, FractionBelowOne, PositiveFloat, PositiveInt
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import in_type_of
from kshot.learners.amortised.neural_processes import TransformerBlock
from kshot.learners.heads.distances import Scaled, cosine, log_weight, reference_point, unit
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.protonet import Prototypes
from kshot.objectives import Objective
from kshot.supplied import FeatureCount, FrozenEmbedding
from kshot.types import Tree


class InContext(Head):
    """Class means, and a transformer's correction of their scores; see `caml`.

    The state holds the class means, the mean of the support, and keys and values of each block.

    Args:
        features: D.
        classes: K, the largest number of classes.
        width: d, a multiple of `heads`.
        heads: number of heads of each attention.
        layers: number of blocks.
        scale: initial value of the learned factor on the cosines to class means.
        dropout: share of the features that the transformer does not see, in training.
    """

    labels: Tensor

    def __init__(
        self, features: int, *, classes: int, width: int, heads: int, layers: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.prototypes = Prototypes(Scaled(cosine, scale))
        self.image = nn.Linear(features, width)
        self.register_buffer("labels", equiangular(classes))
        self.label = nn.Linear(classes, width, bias=False)
        self.unknown = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, classes, bias=False)
        nn.init.zeros_(self.out.weight)  # an untrained learner predicts as class means do

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        most = len(self.labels)
        if target_NC.shape[1] > most:
            raise ValueError(f"this learner takes tasks of at most {most} classes, got {target_NC.shape[1]}")
        state = {"means": self.prototypes.fit(feat_ND, target_NC, weight_N)}
        state |= {"centre": reference_point(feat_ND, weight_N), "weight": weight_N}
        label_NK = pad(target_NC, (0, most - target_NC.shape[1])) @ self.labels.to(target_NC.dtype)
        row_Nd = self._embed(state, feat_ND) + self.label(in_type_of(self.label, label_NK))
        memories, log_weight_N = {}, log_weight(weight_N)
        for number, block in enumerate(self._blocks()):
            key, value = block.memory(row_Nd)
            memories[str(number)] = {"key": key, "value": value}
            row_Nd = block(row_Nd, (key, value), log_weight_N)
        return state | {"memory": memories}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        row_Md, log_weight_N = self._embed(state, feat_MD) + self.unknown, log_weight(state["weight"])
        for number, block in enumerate(self._blocks()):
            memory = state["memory"][str(number)]
            row_Md = block(row_Md, (memory["key"], memory["value"]), log_weight_N)
        logit_MC = self.prototypes.predict(state["means"], feat_MD)
        vector_MK = self.out(self.norm(row_Md)).to(feat_MD.dtype)
        return logit_MC + vector_MK @ self.labels[: logit_MC.shape[1]].to(feat_MD.dtype).mT

    def _embed(self, state: Tree, feat_MD: Tensor) -> Tensor:
        """Rows (M, d) for features relative to the mean of the support, at one length."""
        length = feat_MD.shape[1] ** 0.5
        return self.image(self.dropout(in_type_of(self.image, length * unit(feat_MD - state["centre"]))))

    def _blocks(self) -> list[TransformerBlock]:
        return cast("list[TransformerBlock]", list(self.blocks))


def equiangular(count: int) -> Tensor:
    r"""Vectors (K, K) of length 1, of which all pairs have the same and the widest possible angle:

    $$ \phi_i = \sqrt{\tfrac{K}{K - 1}} \, \bigl(e_i - \tfrac1K 1\bigr), \qquad
       \phi_i^\top \phi_j = -\tfrac{1}{K - 1} $$
    """
    return (torch.eye(count) - 1 / count) * (count / (count - 1)) ** 0.5


def caml(
    embedding: FrozenEmbedding,
    *,
    features: FeatureCount,
    classes: Annotated[int, Ge(2), Le(MOST)] = 10,
    width: PositiveInt = 128,
    heads: PositiveInt = 4,
    layers: PositiveInt = 3,
    scale: PositiveFloat = 10.0,
    dropout: FractionBelowOne = 0.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""CAML: a transformer over frozen features and label vectors, meta-trained once on many domains.

    $$ \hat y_c = s \cos(f, \bar f_c) + \phi_c^\top W h, \qquad
       h = \mathrm{transformer}_\theta\bigl([z; u], \{[z_i; \phi_{y_i}]\}\bigr), \qquad
       z = \frac{f - \bar f}{\lVert f - \bar f \rVert} $$

    Support rows are pairs of an image and its label, the query one of an image and the unknown label u. The label
    vectors $\phi$ are equal length and maximally equiangular (ELMES), so that no two classes are nearer to each other
    than others. Adapting is one pass over the support set, without a gradient: meta-trained on tasks of many domains,
    as of a `mixture` of sources, the learner takes tasks of others as it is. It needs very many training classes: some
    hundred it learns by heart, and is then worse than class means on others; choose its checkpoint on other classes.

    Args:
        embedding: a pretrained frozen encoder: inputs (n, ...) to features (n, D).
        features: D, width of the embedding's output.
        classes: largest number of classes of a task, and of label vectors; train with as many ways as you predict with.
        width: d, width of the transformer, a multiple of `heads`.
        heads: number of heads of each attention.
        layers: number of blocks.
        scale: initial value of $s$.
        dropout: share of the features that the transformer does not see, in training; it keeps the
            transformer from learning the training classes by heart.
        objective, batchnorm: as in `simpleshot`.

    Returns:
        A learner for tasks of up to `classes` classes. Its state has 2 d numbers per block and support row.

    Raises:
        ValueError: a width that is no multiple of `heads`; at adaptation, more than `classes` classes.

    Example:
        >>> learner = caml(nn.Flatten(), features=6, classes=5)
        >>> support = kshot.Batch.of(torch.randn(4, 6), torch.tensor([0, 1, 2, 2]), ways=3)
        >>> learner.predict(learner.adapt(support), torch.randn(2, 6)).shape
        torch.Size([2, 3])

    References:
        Fifty, Duan, Junkins, Amid, Leskovec, Ré, Thrun: Context-Aware Meta-Learning, ICLR 2024, arXiv:2310.10971.

    Deviations:
        The scores of class means, to which the transformer adds, and which an untrained learner gives alone: minutes of
        training take the place of the paper's days on large data sets. Features are relative to the mean of the support
        set. Support rows do not attend to the query, so that a support set is encoded once for all queries; classes are
        scored by the inner product with their label vectors. The transformer is smaller than the paper's (ViT-Large).
    """
    sizes = {"classes": classes, "width": width, "heads": heads, "layers": layers}
    head = InContext(features, **sizes, scale=scale, dropout=dropout)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
