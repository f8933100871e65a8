"""Learners that classify by similarity to the support examples in a feature space.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kshot import objectives
from kshot.annotations import NonNegativeInt, PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.protonet import Head, HeadLearner, Prototypes, Scaled, cosine, euclidean, log_parameter
from kshot.objectives import Objective
from kshot.types import Tree


class FeatureStatistics(Head):
    """A head with numbers that are no meta-parameters: `training.pretrain.fit_feature_statistics` measures them on the
    training classes.

    Attributes:
        batches: of examples that it is measured on.
    """

    batches: int = 16

    @abstractmethod
    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        """Take features of training examples, one-hot over the training classes, for what they are; in place."""


class Centred(FeatureStatistics):
    r"""Features less their mean over the training classes, at unit length (CL2N), and a head on those:

    $$ f \mapsto (f - \mu) / \lVert f - \mu \rVert $$

    Args:
        head: what is fitted to them.
        features: D, of the embedding.

    Attributes:
        centre: $\mu$, (D,), 0 until `training.pretrain.fit_feature_statistics` measures it.
    """

    centre: Tensor

    def __init__(self, head: Head, features: int) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be the width of the embedding's output, at least 1, got {features}")
        self.head = head
        self.scores_absent, self.transductive = head.scores_absent, head.transductive
        self.register_buffer("centre", torch.zeros(features))

    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        self.centre.copy_(weight_N @ feat_ND / weight_N.sum())

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.head.fit(self._centred(feat_ND), target_NC, weight_N)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return self.head.predict(state, self._centred(feat_MD))

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self.head.statistics(self._centred(feat_ND), target_NC, weight_N)

    def merge(self, old: Tree, new: Tree) -> Tree:
        return self.head.merge(old, new)

    def fit_statistics(self, memory: Tree) -> Tree:
        return self.head.fit_statistics(memory)

    def _centred(self, feat_ND: Tensor) -> Tensor:
        return normalize(feat_ND - self.centre, dim=1)


def simpleshot(
    embedding: nn.Module,
    *,
    features: int,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""SimpleShot: the nearest class mean of pretrained features, centred on the training classes and normalised.

    $$ z = \frac{f(x) - \mu}{\lVert f(x) - \mu \rVert}, \qquad
       p(y = c \mid x) = \mathrm{softmax}_c\bigl(-s \lVert z - \bar z_c \rVert^2\bigr), \qquad
       \mu = \text{mean of } f \text{ over the training classes} $$

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        features: D, how many features that makes for an example.
        scale: $s$, where it starts; it is learned if the learner is meta-trained.
        objective: what the tasks ask.
        batchnorm: "running" (the paper's), "support" (inductive) or "query" (transductive).

    Returns:
        A learner for any number of ways and shots. $\mu$ is 0 until `training.fit_feature_statistics(learner, source)`
        measures it.

    Raises:
        ValueError: `features` or a scale out of bounds.

    Example:
        >>> learner = simpleshot(nn.Flatten(), features=2)
        >>> support = kshot.Batch.of(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0, 0.0]])).detach()
        tensor([[  0., -20.]])

    References:
        Wang, Chao, Weinberger, van der Maaten: SimpleShot, arXiv:1911.04623 (CL2N).

    Deviations:
        The scale, which the paper does not need for its choice of a class, makes probabilities of distances.
    """
    head = Centred(Prototypes(Scaled(euclidean, scale)), features)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)


class FullContext(nn.Module):
    r"""Embeds features in the context of others: an LSTM that reads from them by attention, without any order.

    $$ r_{k-1} = \sum_i a(h_{k-1}, g_i) \, g_i, \quad \hat h_k, c_k = \mathrm{LSTM}(f, [h_{k-1}, r_{k-1}], c_{k-1}),
       \quad h_k = \hat h_k + f $$

    with $a$ a softmax over inner products, $h_0 = f$ and $c_0 = 0$.

    Args:
        features: D.
        steps: how often it reads.
    """

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.gates = nn.Linear(3 * features, 4 * features)

    def forward(self, feat_MD: Tensor, context_ND: Tensor, log_weight_N: Tensor) -> Tensor:
        h, c = feat_MD, torch.zeros_like(feat_MD)
        for _ in range(self.steps):
            read = (h @ context_ND.mT + log_weight_N).softmax(1) @ context_ND
            forget, take, give, new = self.gates(torch.cat([feat_MD, h, read], 1)).chunk(4, 1)
            c = forget.sigmoid() * c + take.sigmoid() * new.tanh()
            h = give.sigmoid() * c.tanh() + feat_MD
        return h


class Matching(Head):
    r"""The support targets, averaged by the cosine similarity of their examples to the query; see `matching_net`.

    The state holds the support's features, and so grows with its rows.

    Args:
        scale: $s$, where it starts.
        contexts: modules that embed the support in its own context, and a query in the support's.
    """

    def __init__(self, scale: float, contexts: tuple[FullContext, FullContext] | None = None) -> None:
        super().__init__()
        self.log_scale = log_parameter("scale", scale)
        self.contexts = None if contexts is None else nn.ModuleList(contexts)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        log_weight_N = weight_N.clamp_min(torch.finfo(weight_N.dtype).tiny).log()
        if self.contexts is not None:
            feat_ND = self.contexts[0](feat_ND, feat_ND, log_weight_N)
        return {"features": feat_ND, "targets": target_NC, "log_weight": log_weight_N}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        if self.contexts is not None:
            feat_MD = self.contexts[1](feat_MD, state["features"], state["log_weight"])
        near_MN = self.log_scale.exp() * cosine(feat_MD, state["features"])
        chance_MC = (near_MN + state["log_weight"]).softmax(1) @ state["targets"]
        return chance_MC.clamp_min(torch.finfo(chance_MC.dtype).tiny).log()


def matching_net(
    embedding: nn.Module,
    *,
    context_steps: NonNegativeInt = 0,
    features: int | None = None,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Matching networks: a query's class is the support targets' mean under attention by cosine similarity.

    $$ p(y \mid x) = \sum_i a_i y_i, \qquad a = \mathrm{softmax}_i \bigl(s \cos(f(x), g(x_i))\bigr) $$

    Args:
        embedding: any module: inputs (n, ...) to features (n, ...); both $f$ and $g$ without context.
        context_steps: reads of full-context embeddings (see `FullContext`), of the support in its own context and of
            a query in the support's; 0 for none.
        features: D, how many features the embedding makes; for full-context embeddings.
        scale: $s$, where it starts; it is learned.
        objective: what the tasks ask.
        batchnorm: "support" (inductive), "query" (transductive) or "running".

    Returns:
        A learner for any number of ways and shots; its state holds the support's features.

    Raises:
        ValueError: numbers out of bounds, or context without `features`.

    Example:
        >>> learner = matching_net(nn.Flatten(), scale=1.0)
        >>> support = kshot.Batch.of(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[5.0, 0.0]])).softmax(1).detach()
        tensor([[0.7311, 0.2689]])

    References:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning, NeurIPS 2016,
        arXiv:1606.04080, sections 2.1 and A.1.

    Deviations:
        The scale is 1 in the paper. Where the paper's $g$ is a bidirectional LSTM over the support in some order, it is
        here the paper's $f$ with weights of its own, so that the order of the support does not matter.
    """
    if context_steps < 0:
        raise ValueError(f"context_steps must be at least 0, got {context_steps}")
    contexts = None
    if context_steps:
        if not features:
            raise ValueError("full-context embeddings need features, the width of the embedding's output")
        contexts = FullContext(features, context_steps), FullContext(features, context_steps)
    return HeadLearner(embedding, Matching(scale, contexts), objective, batchnorm=batchnorm)
