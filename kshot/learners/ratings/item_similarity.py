"""Clicks: items similar to those that a new user clicked, by similarities that are meta-learned.

Shape legend: N support rows, M query rows, D factors of an item, H similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.precision import at_least_float32, in_type_of
from kshot.learner import Learner, predict_query
from kshot.objectives import Objective, levels_of
from kshot.supplied import ItemFactors
from kshot.types import Batch, Task, Tree

LEAST_REST = 1e-3  # least share of an item that the other items leave unexplained
UNUSED = -6.0  # initial log filter of the factors of the other method


class ItemSimilarity(Learner):
    """Similarity to the clicked items; see `item_similarity`, which documents the arguments.

    The state is `{"user": (H, D), "clicks": ()}`: the user's factors under each similarity, and the number of clicks.
    """

    def __init__(
        self, factors: int, objective: Objective, *, implicit: int, similarities: int, hidden: int, ranking_loss: float
    ) -> None:
        super().__init__(objective)
        if len(levels_of(objective) or ()) != 2:
            raise ValueError(
                f"item_similarity is for clicks, and the objective is {objective.name}: give the source rating: null, "
                "or take the learner alpaca for ratings"
            )
        if factors < 2 + implicit:
            raise ValueError("item_similarity needs the factors of items: give the source item_factors: 100")
        self.ranking_loss = ranking_loss
        self.implicit = implicit
        filters_HD = torch.full((similarities, factors - 1), UNUSED)
        of_ease, of_als = filters_HD.split([factors - 1 - implicit, implicit], 1)
        of_ease[::2] = -torch.arange((similarities + 1) // 2)[:, None] * torch.arange(1, factors - implicit).log()
        of_als[1::2] = -torch.arange(similarities // 2)[:, None] * torch.arange(1, implicit + 1).log()
        self.log_filter = nn.Parameter(filters_HD)
        self.clicked_powers = nn.Parameter(torch.zeros(similarities, 2))
        self.item_powers = nn.Parameter(torch.zeros(similarities, 2))
        self.log_noise = nn.Parameter(torch.full((similarities,), 1.0))
        self.log_scale = nn.Parameter(torch.full((similarities,), 4.0))
        self.linear = nn.Linear(similarities + 1, 1)
        self.correction = nn.Sequential(nn.Linear(similarities + 2, hidden), nn.GELU(), nn.Linear(hidden, 1))
        with torch.no_grad():
            self.item_powers[::2, 1] = -1.0
            self.log_noise[1::2] = -1.0
            self.linear.weight.fill_(1.0)[:, -1] = 0
            self.linear.bias.fill_(-2.5)
            for parameter in self.correction[2].parameters():
                parameter.zero_()

    def forward(self, task: Task) -> Tensor:
        """The query loss after adapting, plus `ranking_loss` times the mean of $-\\log p$ of each click among all items
        of the query."""
        query = task.query
        prediction = predict_query(self, self.adapt(task.support), query)
        loss = self.objective.loss(prediction, query)
        if not self.ranking_loss:
            return loss
        score = torch.where(query.weight > 0, prediction[:, 1] - prediction[:, 0], torch.finfo(prediction.dtype).min)
        clicked = query.targets[:, 1].to(score.dtype) * query.weight.to(score.dtype)
        surprise = torch.where(clicked > 0, score.logsumexp(0) - score, 0)
        return loss + self.ranking_loss * clicked @ surprise / clicked.sum().clamp_min(1)

    def _adapt(self, support: Batch) -> Tree:
        popularity_N, factors_ND, rest_N = self._parts(support.inputs)
        clicked_N = support.weight.to(factors_ND.dtype) * support.targets[:, 1].to(factors_ND.dtype)
        weight_HN = (clicked_N[:, None] * _power(self.clicked_powers, popularity_N, rest_N)).mT
        filtered_HND = factors_ND * self.log_filter.to(factors_ND.dtype).exp()[:, None]
        noise_H1 = self.log_noise.to(factors_ND.dtype).exp()[:, None]
        eye_NN = torch.eye(len(clicked_N), dtype=factors_ND.dtype, device=factors_ND.device)
        among_HNN = weight_HN[..., None] * (filtered_HND @ factors_ND.mT) + noise_H1[..., None] * eye_NN
        share_HN = torch.linalg.solve(among_HNN, weight_HN[..., None])[..., 0] * (1 + noise_H1)
        user_HD = (share_HN[:, None] @ filtered_HND)[:, 0]
        return {"user": user_HD / (clicked_N.sum() + 1), "clicks": clicked_N.sum()}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        popularity_M, factors_MD, rest_M = self._parts(inputs)
        similarity_MH = _power(self.item_powers, popularity_M, rest_M) * (factors_MD @ state["user"].mT)
        scaled_MH = torch.asinh(similarity_MH * self.log_scale.to(similarity_MH.dtype).exp())
        seen_M = state["clicks"].log1p().expand(len(popularity_M)) / 3
        known = in_type_of(self, torch.cat([scaled_MH, popularity_M[:, None], seen_M[:, None]], 1))
        logit_M1 = self.linear(known[:, :-1]) + self.correction(known)
        return torch.cat([torch.zeros_like(logit_M1), logit_M1], 1)

    def _parts(self, inputs: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Popularity (n,), factors (n, D), and the share of each item that the others do not explain in EASE (n,)."""
        features = at_least_float32(inputs["item_factors"])
        of_ease = features[:, 1 : features.shape[1] - self.implicit]
        return features[:, 0], features[:, 1:], (1 - of_ease.square().sum(1)).clamp_min(LEAST_REST)


def _power(powers_H2: Tensor, popularity_n: Tensor, rest_n: Tensor) -> Tensor:
    """exp(a popularity) rest^b for each similarity (n, H)."""
    return (torch.stack([popularity_n, rest_n.log()], 1) @ powers_H2.to(rest_n.dtype).mT).exp()


@check_arguments
def item_similarity(
    factors: ItemFactors,
    *,
    implicit: NonNegativeInt = 32,
    similarities: PositiveInt = 2,
    hidden: PositiveInt = 32,
    ranking_loss: NonNegativeFloat = 0.5,
    objective: Objective,
) -> ItemSimilarity:
    r"""Items similar to those that a new user clicked: EASE and implicit ALS, with what they tune meta-learned.

    $$ k_h(i, j) = z_i^\top \mathrm{diag}(f_h) \, z_j, \qquad
       a_h = (\kappa_h I + W_h K_h)^{-1} w_h, \qquad
       s_h(i) = p_i^{(h)} \, \frac{1 + \kappa_h}{1 + n} \sum_j a_{hj} \, k_h(i, j) $$

    over the $n$ clicked items $j$ of the support set, with $z$ the item factors of the source. The spectral filters
    $f_h$, the noise $\kappa_h$ and the powers of popularity and of $1 - |z_i|^2$ in $p_i^{(h)}$ and $w_{hj}$ are
    learned; so is the readout of the log-odds of a click, which is linear in $\mathrm{asinh}(e^{c_h} s_h)$ and
    popularity, plus a perceptron of these and of $\log (1 + n)$.

    The first similarity begins as EASE: $f_1 = 1$ on its factors, 0 on the others, and $\kappa$ large.
    The second begins as implicit ALS: $f_2 = 1$ on its factors, and a small $\kappa$, with which clicked items that are
    similar to each other share their weight.

    Args:
        factors: width of the input `item_factors` of `kshot.sources.ratings`, set by its `item_factors`.
        implicit: how many of the factors, the last, are those of implicit ALS, as in that input.
        similarities: H; they begin as EASE and as implicit ALS in turn, each further pair with filters that decay.
        hidden: width of the perceptron.
        ranking_loss: weight of the softmax cross-entropy of a click among the query's items in the outer loss.
        objective: `levels` of two levels, as of a source of clicks.

    Returns:
        A learner for any number of clicks, including none. Items without a click in the support set do not matter.

    Example:
        >>> learner = item_similarity(3, implicit=0, objective=kshot.objectives.levels([0, 1], 0.5, 0.5, like=1))
        >>> factors = torch.tensor([[0.5, 0.9, 0.0], [0.5, 0.8, 0.0], [0.5, 0.0, 0.9]])
        >>> state = learner.adapt(Batch.of({"item_factors": factors[:1]}, torch.tensor([[0.0, 1.0]])))
        >>> clicked = learner.predict(state, {"item_factors": factors[1:]})[:, 1]
        >>> bool(clicked[0] > clicked[1])
        True

    References:
        Steck: Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019, arXiv:1905.03375; Hu, Koren, Volinsky:
        Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008; the prior is meta-learned as in ALPaCA,
        Harrison, Sharma, Pavone, WAFR 2018, arXiv:1807.08912.

    Deviations:
        The factors are not meta-learned: they come from the training clicks of other users.
    """
    return ItemSimilarity(
        factors, objective, implicit=implicit, similarities=similarities, hidden=hidden, ranking_loss=ranking_loss
    )
