"""Heads and embeddings that are fine-tuned by gradient descent on each support set.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from kshot import objectives
from kshot.annotations import NonNegativeInt, PositiveFloat
from kshot.data.images.augment import Augment
from kshot.inner.functional import BatchNorm
from kshot.inner.per_parameter import Pattern, adaptable_params
from kshot.inner.rules import SGD, Adam, UpdateRule
from kshot.inner.solvers import FirstOrder, InnerSolver
from kshot.inner.unrolling import unroll
from kshot.learner import Learner
from kshot.learners.heads.distances import Distance, Scaled, class_means, cosine, unit
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.protonet import protonet
from kshot.objectives import Objective, only_present
from kshot.supplied import Embedding
from kshot.types import Batch, Params, Task, Tree


class CosineClassifier(Head):
    r"""Weights that are compared with features by their cosine, tuned by gradient descent; see `baseline_pp`.

    Args:
        rule: update rule of a step.
        steps: number of steps on the whole support set.
        scale: initial value of $s$.
    """

    def __init__(self, rule: UpdateRule, steps: int, scale: float) -> None:
        super().__init__()
        self.rule, self.steps, self.score = rule, steps, Scaled(cosine, scale)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        batch = Batch(feat_ND, target_NC, weight_N)
        present_C = objectives.classes_present(batch)

        def loss(params: Params) -> Tensor:
            return objectives.classification.loss(only_present(self.score(feat_ND, params["weight"]), present_C), batch)

        initial_CD = class_means(unit(feat_ND), target_NC, weight_N)
        initial_CD = initial_CD.where(present_C[:, None], 1.0)  # the cosine has no second derivative at 0
        return unroll(loss, {"weight": initial_CD}, self.rule, self.steps)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return self.score(feat_MD, state["weight"])


def baseline_pp(
    embedding: Embedding,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 100,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "running",
) -> HeadLearner:
    r"""Baseline++: a cosine classifier, tuned on the support set's features; the embedding is not tuned.

    $$ p(y = c \mid x) = \mathrm{softmax}_c \bigl(s \cos(w_c, f(x))\bigr), \qquad
       w \leftarrow w - \alpha \nabla_w L_{\text{support}}(w) $$

    Args:
        embedding: pretrained by `kshot.pretrain`: inputs (n, ...) to features (n, ...).
        inner_lr: $\alpha$.
        steps: number of gradient steps on the support set.
        scale: initial value of $s$; if the learner is meta-trained it is learned, through the steps and exactly.
        objective, batchnorm: as in `protonet`; the paper's BatchNorm is "running".

    Example:
        >>> learner = baseline_pp(nn.Flatten(), inner_lr=0.1, steps=5)
        >>> support = kshot.Batch.of(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[3.0, 1.0]])).argmax(1)
        tensor([0])

    References:
        Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification, ICLR 2019, arXiv:1904.04232.

    Deviations:
        The weights start at the class means of unit features (Qi, Brown, Lowe, arXiv:1712.07136) rather than at random,
        and each step sees the whole support set, rather than 4 rows at a time. The steps have no momentum, which is 0.9
        in the authors' code, and no weight decay, 0.001 there. Their scale is fixed at 2, or at 10 for more than 200
        classes. `kshot.pretrain` trains with a linear classifier, not a cosine one.
    """
    return HeadLearner(embedding, CosineClassifier(SGD(inner_lr), steps, scale), objective, batchnorm=batchnorm)


class TunedEmbedding(Learner):
    r"""A head learner whose embedding is fine-tuned on each support set, with augmented support images as queries.

    $$ \theta_{k+1} = \text{rule}\bigl(\nabla_\theta L(\mathrm{augment}_k(\text{support});
       \text{fit}(f_\theta(\text{support})))\bigr) $$

    It is meta-trained as the head learner is, without fine-tuning: `forward` is the head learner's outer loss.

    Args:
        learner: the head learner; its parameters are the initial values in each task.
        solver: solves the inner problem.
        augment: augmentation, the same for all images of a support set at a step, so that their order has no effect.
        adaptable: parameters of the embedding that are tuned.
    """

    def __init__(
        self, learner: HeadLearner, solver: InnerSolver, augment: Augment, *, adaptable: Pattern = "*"
    ) -> None:
        super().__init__(learner.objective)
        self.learner, self.solver, self.augment, self.adaptable = learner, solver, augment, adaptable
        self.transductive = learner.transductive

    def forward(self, task: Task) -> Tensor:
        """The outer loss of one task without fine-tuning, ()."""
        return self.learner(task)

    def _adapt(self, support: Batch) -> Tree:
        batches = [(support, self._augmented(support, step)) for step in range(self.solver.steps)]
        params = self.solver(self._loss, adaptable_params(self.learner.embedding, self.adaptable), batches)
        return self._state(params, support)

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        return self.learner.predict(state, inputs)

    def _loss(self, params: Params, batches: tuple[Batch, Batch]) -> Tensor:
        support, pseudo_query = batches
        prediction = self.learner.predict(self._state(params, support), pseudo_query.inputs)
        return self.objective.loss(prediction, pseudo_query)

    def _state(self, params: Params, support: Batch) -> Tree:
        return self.learner.fit(support, *self.learner.embed(support, params)) | {"params": params}

    def _augmented(self, support: Batch, step: int) -> Batch:
        images = support.inputs
        if not isinstance(images, Tensor) or images.ndim != 4:
            return support
        as_one_image = self.augment(images.flatten(0, 1)[None], np.random.default_rng(step))
        return support._replace(inputs=as_one_image.view(images.shape))


def pmf(
    embedding: Embedding,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 50,
    shift: NonNegativeInt = 2,
    flip: bool = False,
    distance: Literal["euclidean", "cosine"] | Distance = "cosine",
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> TunedEmbedding:
    r"""P>M>F: pretrain an embedding, meta-train it as a ProtoNet, fine-tune all of it on each new support set.

    In fine-tuning, shifted and mirrored images of the support set serve as queries:

    $$ \theta_{k+1} = \mathrm{Adam}\bigl(\nabla_\theta L_{\text{ProtoNet}}(\text{support},
       \mathrm{augment}_k(\text{support}); \theta_k)\bigr) $$

    Args:
        embedding: any module, pretrained by `kshot.pretrain` (P): inputs (n, ...) to features (n, ...).
        inner_lr: learning rate of Adam in fine-tuning (F); choose it on validation tasks, the best value differs
            between domains.
        steps: number of fine-tuning steps; 0 leaves the ProtoNet.
        shift: largest shift of an image in fine-tuning, in pixels.
        flip: whether images are mirrored at random; unsuitable if left and right distinguish classes.
        distance, objective, batchnorm: as in `protonet`.

    Returns:
        A learner for any number of ways and shots. `kshot.fit` meta-trains it as a ProtoNet (M); `adapt`, and so
        evaluation, fine-tunes it.

    Example:
        >>> learner = pmf(nn.Linear(2, 3), inner_lr=0.01, steps=4)
        >>> support = kshot.Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2)
        >>> sorted(learner.adapt(support)["params"])
        ['bias', 'weight']

    References:
        Hu, Li, Stühmer, Kim, Hospedales: Pushing the Limits of Simple Pipelines for Few-Shot Learning, CVPR 2022,
        arXiv:2204.07305.

    Deviations:
        The paper pretrains transformers by self-supervision on other data, and its augmentation changes colours too,
        shifts each image by itself, and makes each change with a probability of 0.9. Its cosine has a learned offset,
        which changes no probability. Inputs other than images are not augmented: the support set is then its own query.
    """
    learner = protonet(embedding, distance=distance, objective=objective, batchnorm=batchnorm)
    return TunedEmbedding(learner, FirstOrder(Adam(inner_lr), steps), Augment(flip=flip, shift=shift))
