"""Matching networks: attention over the support examples.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import NonNegativeInt, PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import in_type_of
from kshot.learners.heads.distances import cosine, exp_as, log_parameter, log_weight, reference_point
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective
from kshot.supplied import Embedding, FeatureCount
from kshot.types import Tree


class FullContext(nn.Module):
    r"""Embeds features in the context of others: an LSTM that attends to them, independent of their order.

    $$ r_{k-1} = \sum_i a(h_{k-1}, g_i) \, g_i, \quad \hat h_k, c_k = \mathrm{LSTM}(f, [h_{k-1}, r_{k-1}], c_{k-1}),
       \quad h_k = \hat h_k + f $$

    with $a$ a softmax over inner products, $h_0 = f$ and $c_0 = 0$.

    Args:
        features: D.
        steps: number of reads.
    """

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.gates = nn.Linear(3 * features, 4 * features)

    def forward(self, feat_MD: Tensor, context_ND: Tensor, log_weight_N: Tensor) -> Tensor:
        hidden_MD, cell_MD = feat_MD, torch.zeros_like(feat_MD)
        # the softmax does not change, but inner products with contexts far from the origin would lose their differences
        centred_ND = context_ND - reference_point(context_ND, log_weight_N.exp())
        for _ in range(self.steps):
            read_MD = (hidden_MD @ centred_ND.mT + log_weight_N).softmax(1) @ context_ND
            gates = self._gates(torch.cat([feat_MD, hidden_MD, read_MD], 1))
            forget_MD, input_MD, output_MD, new_MD = gates.chunk(4, 1)
            cell_MD = forget_MD.sigmoid() * cell_MD + input_MD.sigmoid() * new_MD.tanh()
            hidden_MD = output_MD.sigmoid() * cell_MD.tanh() + feat_MD
        return hidden_MD

    def _gates(self, joint: Tensor) -> Tensor:
        return self.gates(in_type_of(self.gates, joint)).to(joint.dtype)


class Matching(Head):
    r"""The support targets, averaged by the cosine similarity of their examples to the query; see `matching_net`.

    The state holds the support's features, and so grows with its rows.

    Args:
        scale: initial value of $s$.
        contexts: modules that embed the support in its own context, and a query in the support's.
    """

    def __init__(self, scale: float, contexts: tuple[FullContext, FullContext] | None = None) -> None:
        super().__init__()
        self.log_scale = log_parameter("scale", scale)
        self.contexts = None if contexts is None else nn.ModuleList(contexts)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        log_weight_N = log_weight(weight_N)
        if self.contexts is not None:
            feat_ND = self.contexts[0](feat_ND, feat_ND, log_weight_N)
        return {"features": feat_ND, "targets": target_NC, "log_weight": log_weight_N}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        if self.contexts is not None:
            feat_MD = self.contexts[1](feat_MD, state["features"], state["log_weight"])
        similarity_MN = exp_as(feat_MD, self.log_scale) * cosine(feat_MD, state["features"])
        probability_MC = (similarity_MN + state["log_weight"]).softmax(1) @ state["targets"]
        return probability_MC.clamp_min(torch.finfo(probability_MC.dtype).tiny).log()


@check_arguments
def matching_net(
    embedding: Embedding,
    *,
    context_steps: NonNegativeInt = 0,
    features: FeatureCount | None = None,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Matching networks: a query's class is the support targets' mean under attention by cosine similarity.

    $$ p(y \mid x) = \sum_i a_i y_i, \qquad a = \mathrm{softmax}_i \bigl(s \cos(f(x), g(x_i))\bigr) $$

    Args:
        embedding: any module: inputs (n, ...) to features (n, ...); $f$ and $g$ where there is no context.
        context_steps: number of reads of full-context embeddings (see `FullContext`), of the support in its own context
            and of a query in the support's; 0 for none.
        features: D, width of the embedding's output; needed for full-context embeddings.
        scale: initial value of $s$, which is learned.
        objective, batchnorm: as in `protonet`.

    Returns:
        A learner for any number of ways and shots; its state holds the support's features.

    Raises:
        ValueError: context without `features`.

    Example:
        >>> learner = matching_net(nn.Flatten(), scale=1.0)
        >>> support = kshot.Batch.of(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[5.0, 0.0]])).softmax(1).detach()
        tensor([[0.7311, 0.2689]])

    References:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning, NeurIPS 2016,
        arXiv:1606.04080, sections 2.1 and A.1.

    Deviations:
        The scale is 1 in the paper. The paper's $g$ is a bidirectional LSTM over the support in some order; here it is
        the paper's $f$ with weights of its own, so that the order of the support does not matter.
    """
    contexts = None
    if context_steps:
        if not features:
            raise ValueError("full-context embeddings need features, the width of the embedding's output")
        contexts = FullContext(features, context_steps), FullContext(features, context_steps)
    return HeadLearner(embedding, Matching(scale, contexts), objective, batchnorm=batchnorm)
