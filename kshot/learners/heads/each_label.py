"""Multi-label tasks for heads of classes: each label by itself, as a choice between true and false.

Shape legend: N support rows, M query rows, D features, C labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.learners.heads.head import Head
from kshot.types import Tree, tree_map


class EachLabel(Head):
    r"""Fits a head of two classes, false and true, to each label: binary relevance.

    $$ \hat y_c = s_{\text{true}} - s_{\text{false}}, \qquad
       s = \text{predict}\bigl(\text{fit}(F, [1 - y_c, y_c]), f\bigr) $$

    For `Prototypes` it is how much nearer the mean of the examples with a label is than that of those without, for a
    ridge regression the regression of 1 and -1, for logistic regression the logit. A label that all support examples
    have, or none, gets the log-odds of `SupportMean`, the same for all queries:
    $\log \frac{w_c + 1/2}{\sum_i w_i - w_c + 1/2}$.

    The state is `{"heads": …, "log_odds": (C,), "both": (C,)}`, the states of the heads stacked; "both" says which
    labels have examples of both.

    Args:
        head: fitted to one-hot targets (N, 2); `fits_parts` must be true.

    References:
        Tsoumakas, Katakis: Multi-Label Classification: An Overview, IJDWM 2007, where it is the transformation PT4.
    """

    scores_absent = True

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        self.transductive = head.transductive

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        pairs_CN2 = torch.stack([1 - target_NC, target_NC], 2).unbind(1)
        states = [self.head.fit(feat_ND, pairs_N2, weight_N) for pairs_N2 in pairs_CN2]
        true_C, false_C = weight_N @ target_NC, weight_N @ (1 - target_NC)
        return {
            "heads": tree_map(lambda *leaves: torch.stack(leaves), *states),
            "log_odds": (true_C + 0.5).log() - (false_C + 0.5).log(),
            "both": (true_C > 0) & (false_C > 0),
        }

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        scores = [
            self.head.predict(tree_map(lambda leaf, number=number: leaf[number], state["heads"]), feat_MD).diff()
            for number in range(len(state["both"]))
        ]
        return torch.where(state["both"], torch.cat(scores, 1), state["log_odds"].to(feat_MD.dtype))
