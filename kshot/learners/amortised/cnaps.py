"""CNAPs: a network reads the support set and modulates the layers of a backbone that all tasks share.

Shape legend: N support rows, M query rows, D features, C classes, P numbers of a context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm, Function
from kshot.inner.precision import in_type_of
from kshot.learner import Learner
from kshot.learners.amortised.attention import perceptron, weighted_row_mean
from kshot.learners.gradient.cavia import FiLM
from kshot.learners.heads.distances import reference_point, relative
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import fit_head, predict_head
from kshot.learners.heads.protonet import Prototypes
from kshot.objectives import Objective, classes_present, only_present, refuse_parts
from kshot.objectives.outputs import the_tensor
from kshot.supplied import Embedding, TaskDim, TaskEncoder
from kshot.types import Batch, Tree


class Mahalanobis(Head):
    r"""The mean of each class, and the distance to it under the class's regularised covariance:

    $$ \hat y_{mc} = -\tfrac12 (f_m - \mu_c)^\top Q_c^{-1} (f_m - \mu_c), \qquad
       Q_c = \lambda_c \Sigma_c + (1 - \lambda_c) \Sigma + \beta I, \qquad \lambda_c = \frac{n_c}{n_c + 1} $$

    with the covariance $\Sigma_c$ of the class and $\Sigma$ of the whole support set, and $n_c$ the weight of the
    class. The state is `{"prototypes": (C, D), "precision": (C, D, D), "count": (C,), "reference": (D,)}`, with class
    means relative to the reference, the mean of the support set.

    Args:
        ridge: $\beta$.

    References:
        Bateni et al.: Improved Few-Shot Visual Classification, CVPR 2020, arXiv:1912.03432.

    Deviations:
        Covariances divide by the weight of the rows, where the authors' code divides by one less, so that a class of
        one example needs no special case: its covariance is zero. The factor 1/2 is the paper's; the authors' code
        omits it.
    """

    @check_arguments
    def __init__(self, ridge: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.ridge = ridge

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        share_NC = target_NC * weight_N[:, None]
        count_C = share_NC.sum(0)
        reference_D = reference_point(feat_ND, weight_N)
        feat_ND = feat_ND - reference_D
        mean_CD = share_NC.mT @ feat_ND / count_C.clamp_min(1e-12)[:, None]
        share_N = weight_N / weight_N.sum().clamp_min(1e-12)
        mean_D = share_N @ feat_ND
        centred_ND = feat_ND - mean_D
        overall_DD = centred_ND.mT @ (share_N[:, None] * centred_ND)
        offset_NCD = feat_ND[:, None] - mean_CD
        within_CDD = torch.einsum("nc,ncd,nce->cde", share_NC, offset_NCD, offset_NCD)
        within_CDD = within_CDD / count_C.clamp_min(1e-12)[:, None, None]
        share_C = (count_C / (count_C + 1))[:, None, None]
        eye = torch.eye(feat_ND.shape[1], dtype=feat_ND.dtype, device=feat_ND.device)
        covariance_CDD = share_C * within_CDD + (1 - share_C) * overall_DD + self.ridge * eye
        covariance_CDD = torch.where((count_C > 0)[:, None, None], covariance_CDD, eye)
        state = {"prototypes": mean_CD, "precision": torch.linalg.inv(covariance_CDD), "count": count_C}
        return state | {"reference": reference_D}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        offset_MCD = relative(feat_MD, state)[:, None] - state["prototypes"]
        distance_MC = torch.einsum("mcd,cde,mce->mc", offset_MCD, state["precision"], offset_MCD)
        return only_present(-0.5 * distance_MC, state["count"] > 0)


class FilmLearner(Learner):
    r"""A backbone modulated by a context that an encoder computes from the support set; a head on its features.

    The state is `{"context": (P,), "head": …, "present": (C,), "statistics": …}`; the last only for BatchNorm on
    support statistics.

    Args:
        backbone: any module that maps the task's inputs to features (n, ...), flattened to (n, D).
        encoder: any module that maps them to codes (n, P).
        film: qualified names of the backbone's layers to modulate.
        task_dim: P.
        head: the head to fit to the features.
        objective: loss and metrics of the tasks.
        batchnorm: statistics that BatchNorm uses for a query, in the backbone and in the encoder.
    """

    def __init__(
        self,
        backbone: nn.Module,
        encoder: nn.Module,
        *,
        film: Sequence[str],
        task_dim: int,
        head: Head,
        objective: Objective,
        batchnorm: BatchNorm = "support",
    ) -> None:
        super().__init__(objective)
        refuse_parts(objective, "cnaps")
        if not film:
            raise ValueError("film names no layer to modulate, as in film=['body.0', 'body.4']")
        self.backbone, self.encoder, self.head = FiLM(backbone, film, task_dim), encoder, head
        self.generator = perceptron(task_dim, task_dim, task_dim)
        self.function, self.codes = Function(self.backbone, batchnorm), Function(encoder, batchnorm)
        self.task_norm, self.code_norm = self.function.task_norm, self.codes.task_norm
        self.transductive = self.function.transductive

    def _adapt(self, support: Batch) -> Tree:
        codes = _rows(self.codes.support({}, support)[0])
        code = in_type_of(self.generator, weighted_row_mean(codes, support.weight))
        context = self.generator(code).to(self.backbone.context.dtype)
        features, statistics = self.function.support({"context": context}, support)
        head = fit_head(self.head, _rows(features), support)
        state = {"context": context, "head": head, "present": classes_present(support)}
        return state | {"statistics": statistics} if statistics else state

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        features = self.function.query({"context": state["context"]}, state.get("statistics", {}), inputs)
        return only_present(predict_head(self.head, state["head"], _rows(features)), state["present"])


def _rows(output: Tree) -> Tensor:
    """The output of a model as rows of features (n, D)."""
    return the_tensor(output, "holds the features").flatten(1)


@check_arguments
def cnaps(
    embedding: Embedding,
    encoder: TaskEncoder,
    *,
    film: Annotated[Sequence[str], Len(1)],
    task_dim: TaskDim = 64,
    head: Literal["mahalanobis", "prototypes"] | Head = "mahalanobis",
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> FilmLearner:
    r"""Simple CNAPs: a vector computed from the support set scales and shifts the embedding's channels (FiLM).

    $$ \varphi = g_\theta\Bigl(\frac{\sum_i w_i e_\theta(x_i)}{\sum_i w_i}\Bigr), \qquad
       h_c \leftarrow (1 + \gamma_c(\varphi))\, h_c + \beta_c(\varphi), \qquad (\gamma, \beta) = W \varphi $$

    Then a head is fitted in closed form to the modulated features of the support set.

    Args:
        embedding: any module: inputs (n, ...) to features (n, ...); it is not changed. The paper's is pretrained and
            fixed, as by `embedding.requires_grad_(False)`.
        encoder: any module: inputs (n, ...) to codes (n, task_dim).
        film: qualified names of the embedding's layers to modulate.
        task_dim: P, the size of $\varphi$.
        head: "mahalanobis" (see `Mahalanobis`), "prototypes" (class means), or a `Head`.
        objective, batchnorm: as in `protonet`.

    Returns:
        A learner for any number of ways and shots. Adapting takes two forward passes and no gradient.

    Raises:
        ValueError: no layers, or layers that the embedding lacks.

    Example:
        >>> embedding, encoder = nn.Sequential(nn.Linear(2, 4), nn.ReLU()), nn.Linear(2, 8)
        >>> learner = cnaps(embedding, encoder, film=["0"], task_dim=8)
        >>> state = learner.adapt(Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2))
        >>> state["context"].shape, state["head"]["precision"].shape
        (torch.Size([8]), torch.Size([2, 4, 4]))

    References:
        Requeima et al.: Fast and Flexible Multi-Task Classification Using Conditional Neural Adaptive Processes,
        NeurIPS 2019, arXiv:1906.07697; Bateni et al.: Improved Few-Shot Visual Classification, CVPR 2020,
        arXiv:1912.03432.

    Deviations:
        One linear map from the context for each layer, instead of a network each, and no context of the layers before
        (the papers' auto-regressive path). The papers' scales and shifts start near 1 and 0 by a small learned factor,
        whose squares, times 0.001, are added to the outer loss; here they are those of the linear map. The head is that
        of Simple CNAPs with the deviations of `Mahalanobis`, not the generated linear one of CNAPs.
    """
    heads = {"mahalanobis": Mahalanobis, "prototypes": Prototypes}
    return FilmLearner(
        embedding,
        encoder,
        film=film,
        task_dim=task_dim,
        head=heads[head]() if isinstance(head, str) else head,
        objective=objective,
        batchnorm=batchnorm,
    )
