"""Heads that read the names of classes: class means shrunken to them, and a cache of examples beside them.

The last column of the features is 1 in the rows of names, else 0 (see `tasks.with_names`).

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.precision import widest_float
from kshot.learners.heads.distances import class_means, cosine, exp_as, log_parameter, unit
from kshot.learners.heads.head import FeatureStatistics, SumsByClass
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective
from kshot.supplied import FeatureCount
from kshot.types import Tree


class Named(FeatureStatistics):
    r"""Prepares features of examples and of names: each less their mean over the training classes, at unit length.

    Args:
        features: D, width of the features without the mark.
        scale: initial value of the learned factor on cosines.

    Attributes:
        centres: (2, D), the mean of examples and that of names; 0 until they are measured.
    """

    centres: Tensor

    @check_arguments
    def __init__(self, features: PositiveInt, scale: PositiveFloat) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(2, features))
        self.log_scale = log_parameter("scale", scale)

    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        wide = widest_float(feat_ND.device)
        feat_ND, is_name_N, weight_N = feat_ND[:, :-1].to(wide), feat_ND[:, -1] > 0, weight_N.to(wide)
        for number, chosen_N in enumerate((~is_name_N, is_name_N)):
            of_kind_N = weight_N * chosen_N
            if bool(of_kind_N.sum() > 0):
                self.centres[number] = of_kind_N @ feat_ND / of_kind_N.sum()

    def prepared(self, feat_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) as above, and the marks (N,) of names."""
        if feat_ND.shape[1] != self.centres.shape[1] + 1:
            raise ValueError(
                f"this learner reads the names of classes, and takes {self.centres.shape[1] + 1} columns, the last of "
                f"which marks names; got {feat_ND.shape[1]}: take a source with names, see kshot.tasks.with_names"
            )
        mark_N, centres = feat_ND[:, -1], self.centres.to(feat_ND.dtype)
        centre_ND = torch.where(mark_N[:, None] > 0, centres[1], centres[0])
        return unit(feat_ND[:, :-1] - centre_ND), mark_N


class NamedPrototypes(SumsByClass, Named):
    r"""Class means in which the name of the class counts as a number of examples; see `named_means`.

    The state is `{"sum": (C, D), "count": (C,)}` of examples and `{"names": (C, D), "num_names": (C,)}` of names.

    Args:
        features, scale: as in `Named`.
        strength: initial value of $\kappa$.
    """

    def __init__(self, features: int, scale: float, strength: float) -> None:
        super().__init__(features, scale)
        self.log_strength = log_parameter("strength", strength)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        feat_ND, mark_N = self.prepared(feat_ND)
        share_NC, name_NC = (target_NC * (weight_N * of_kind)[:, None] for of_kind in (1 - mark_N, mark_N))
        return {
            "sum": share_NC.mT @ feat_ND, "count": share_NC.sum(0),
            "names": name_NC.mT @ feat_ND, "num_names": name_NC.sum(0),
        }  # fmt: skip

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        feat_MD, _ = self.prepared(feat_MD)
        kappa_C1 = exp_as(feat_MD, self.log_strength) * (state["num_names"] > 0)[:, None]
        total_CD = state["sum"] + kappa_C1 * unit(state["names"])  # a factor does not change its cosine
        return exp_as(feat_MD, self.log_scale) * cosine(feat_MD, total_CD)


class Cache(Named):
    r"""The cosine to the name of a class, and a cache of examples that vote by their similarity; see `tip_adapter`.

    The state is `{"features": (N, D), "targets": (N, C), "weight": (N,)}` of the rows, names of weight 0 among them,
    and `{"names": (C, D)}`.

    Args:
        features, scale: as in `Named`.
        votes: initial value of $\alpha$.
        sharpness: initial value of $\beta$.
    """

    def __init__(self, features: int, scale: float, votes: float, sharpness: float) -> None:
        super().__init__(features, scale)
        self.log_votes, self.log_sharpness = log_parameter("votes", votes), log_parameter("sharpness", sharpness)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        feat_ND, mark_N = self.prepared(feat_ND)
        name_CD = class_means(feat_ND, target_NC, weight_N * mark_N)
        return {"features": feat_ND, "targets": target_NC, "weight": weight_N * (1 - mark_N), "names": name_CD}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        feat_MD, _ = self.prepared(feat_MD)
        near_MN = (exp_as(feat_MD, self.log_sharpness) * (feat_MD @ state["features"].mT - 1)).exp()
        vote_MC = near_MN @ (state["targets"] * state["weight"][:, None])
        zero_shot_MC = exp_as(feat_MD, self.log_scale) * cosine(feat_MD, state["names"])
        return zero_shot_MC + exp_as(feat_MD, self.log_votes) * vote_MC


def named_means(
    *,
    features: FeatureCount,
    strength: PositiveFloat = 1.0,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
) -> HeadLearner:
    r"""Class means in which the name of the class counts as $\kappa$ examples; without examples, the name alone.

    $$ \hat y_c = s \cos(z, p_c), \qquad p_c = \frac{\sum_i y_{ic} z_i + \kappa \, g_c}{\sum_i y_{ic} + \kappa},
       \qquad z = \frac{f - \mu}{\lVert f - \mu \rVert} $$

    $g_c$ is the mean of the rows that name the class, from a source made by `tasks.with_names`: features of the same
    encoder for texts, or of its text tower for images. $\mu$ is the mean of the training examples, or for names that of
    the names of training classes, since the two lie in different parts of the space.

    Args:
        features: width of the inputs, D + 1: the features of a pretrained encoder, and the mark.
        strength: initial value of $\kappa$.
        scale: initial value of $s$.
        objective: as in `simpleshot`.

    Returns:
        A learner for any number of ways and shots, 0 included. The means are 0 until
        `training.fit_feature_statistics(learner, source)` measures them; $\kappa$ and $s$ are learned, by their
        logarithms, if the learner is meta-trained, for which a rate of 0.02 suits.

    Raises:
        ValueError: inputs of another width.

    Example:
        >>> learner = named_means(features=3)
        >>> inputs = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])  # three rows of names
        >>> state = learner.adapt(kshot.Batch.of(inputs, torch.tensor([0, 1, 1]), ways=2))
        >>> learner.predict(state, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).argmax(1)
        tensor([0, 1])

    References:
        Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv:1703.05175, section 2.7:
        the zero-shot classifier; Xing, Rostamzadeh, Oreshkin, Pinheiro: Adaptive Cross-Modal Few-Shot Learning,
        NeurIPS 2019, arXiv:1902.07104: convex combinations of class means and names.

    Deviations:
        The share of the name is a function of the number of examples, where the second paper predicts it from the name.
    """
    return HeadLearner(nn.Flatten(), NamedPrototypes(features - 1, scale, strength), objective)


def tip_adapter(
    *,
    features: FeatureCount,
    votes: PositiveFloat = 1.0,
    sharpness: PositiveFloat = 5.5,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
) -> HeadLearner:
    r"""Tip-Adapter: zero-shot scores of the names of classes, and a cache of examples that vote by their similarity.

    $$ \hat y_c = s \cos(z, g_c) + \alpha \sum_i y_{ic} \exp\bigl(-\beta (1 - z^\top z_i)\bigr) $$

    $z$ and $g_c$ are as in `named_means`, and the sum is over the examples. Adapting is one pass; without examples it
    is zero-shot classification.

    Args:
        features, objective: as in `named_means`.
        votes: initial value of $\alpha$.
        sharpness: initial value of $\beta$.
        scale: initial value of $s$; CLIP's is 100, for features that are not centred.

    Returns:
        A learner for any number of ways and shots, 0 included. The means are 0 until
        `training.fit_feature_statistics(learner, source)` measures them; $\alpha$, $\beta$ and $s$ are chosen on
        training tasks by meta-training the learner, which learns their logarithms, for which a rate of 0.02 suits.

    Raises:
        ValueError: inputs of another width.

    Example:
        >>> learner = tip_adapter(features=3)
        >>> inputs = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])  # two names and an example
        >>> state = learner.adapt(kshot.Batch.of(inputs, torch.tensor([0, 1, 1]), ways=2))
        >>> learner.predict(state, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).argmax(1)
        tensor([0, 1])

    References:
        Zhang, Zhang, Fang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot
        Classification, ECCV 2022, arXiv:2207.09930 (without fine-tuning of the cache).

    Deviations:
        Features are centred, and $\alpha$ and $\beta$ are learned on training tasks, where the paper searches over them
        for each data set.
    """
    return HeadLearner(nn.Flatten(), Cache(features - 1, scale, votes, sharpness), objective)
