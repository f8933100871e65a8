"""Ordinary training of a base model before meta-training: no tasks, one bag of examples.

Shape legend: n examples, D features, C training classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kshot.learners.heads.metric import FeatureStatistics
from kshot.learners.heads.protonet import HeadLearner, cosine
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.training.fit import OuterLoop, Progress, Settings, first_task, seeded
from kshot.types import Batch, Tree, to, tree_map

Output = Literal["linear", "cosine"]
"""The layer over all training classes: linear, or the cosine to a vector of each class."""

Pretraining = Literal["classification", "contrastive"]
"""What is learned: to tell all training classes by a new layer, or features that are alike within a class alone."""

Precision = Literal["float32", "bfloat16"]
"""What convolutions and matrix products are computed in; the weights stay float32."""

SCALE = 20.0
"""Of cosines, so that probabilities can come near to 0 and 1."""


class Cosine(nn.Module):
    r"""$s \cos(w_c, f)$ of features (n, D) for each class, (n, C), with $s$ = `SCALE`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        # Of length 1: the longer a vector, the more steps of Adam it takes to turn it.
        self.weight = nn.Parameter(torch.randn(classes, features) * features**-0.5)

    def forward(self, feat_nD: Tensor) -> Tensor:
        return SCALE * cosine(feat_nD, self.weight)


class Classifier(nn.Module):
    r"""A model's features, under a new layer over all training classes where there is one.

    The features are what reaches the model's own `head` (its last linear layer, which is put aside), or what the model
    gives if it has none.

    Args:
        model: whose features are trained, in place.
        classes: C, the classes of the training split.
        example: inputs (n, ...) to measure the features with.
        output: what the new layer is; None for the features themselves.
        head: qualified name of the module to put aside; ignored where the model has no such module.
        seed: of the new layer's initial weights.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        example: Tree,
        *,
        head: str = "head",
        output: Output | None = "linear",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self._head = head if head in dict(model.named_modules()) else None
        if output is None:
            self.output: nn.Module = nn.Identity()
            return
        was_training = model.training
        model.eval()  # measuring must not move BatchNorm's running statistics
        with torch.no_grad():
            width = self.features(example).shape[1]
        model.train(was_training)
        with seeded(seed):
            self.output = {"linear": nn.Linear, "cosine": Cosine}[output](width, classes)

    def features(self, inputs: Tree) -> Tensor:
        """What the model makes of inputs (n, ...) before its head: (n, D)."""
        if self._head is None:
            return self._called(inputs).flatten(1)
        seen: list[Tensor] = []
        hook = self.model.get_submodule(self._head).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self._called(inputs)
        finally:
            hook.remove()
        return seen[0].flatten(1)

    def _called(self, inputs: Tree) -> Tensor:
        return self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)

    def forward(self, inputs: Tree) -> Tensor:
        features = self.features(inputs)
        with torch.autocast(features.device.type, enabled=False):  # many classes ask for exact scores
            return self.output(features.float())

    def forget_head(self) -> None:
        """Set the model's own head to zero: what it is to tell apart is for the tasks to say."""
        if self._head is not None:
            for parameter in self.model.get_submodule(self._head).parameters():
                nn.init.zeros_(parameter)


def contrastive(feat_nD: Tensor, target_nC: Tensor, weight_n: Tensor, temperature: float) -> Tensor:
    r"""The supervised contrastive loss of a batch: examples of a class are to be nearer than others, ().

    $$ \frac{1}{|A|} \sum_{i \in A} \frac{-1}{|P_i|} \sum_{p \in P_i}
       \log \frac{\exp(\cos(f_i, f_p) / \tau)}{\sum_{j \ne i} \exp(\cos(f_i, f_j) / \tau)} $$

    with $P_i$ the others of the class of i, and $A$ the examples that have any.

    Args:
        feat_nD: features.
        target_nC: one-hot targets.
        weight_n: rows of weight 0 have no effect.
        temperature: $\tau$.

    Example:
        >>> feat = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> float(contrastive(feat, torch.eye(2)[[0, 0, 1]], torch.ones(3), 1.0))
        0.313...

    References:
        Khosla et al.: Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362 ($L_{out}$).
    """
    near_nn = cosine(feat_nD, feat_nD) / temperature
    real_n = weight_n > 0
    other_nn = real_n & ~torch.eye(len(feat_nD), dtype=torch.bool, device=feat_nD.device)
    alike_nn = (target_nC @ target_nC.mT) * other_nn * real_n[:, None]
    chance_nn = torch.log_softmax(near_nn.masked_fill(~other_nn, torch.finfo(near_nn.dtype).min), 1)
    count_n = alike_nn.sum(1)
    each_n = -(chance_nn * alike_nn).sum(1) / count_n.clamp_min(1)
    return each_n.sum() / (count_n > 0).sum().clamp_min(1)


def pretraining(
    model: nn.Module,
    source: TaskSource,
    settings: Settings,
    *,
    head: str = "head",
    objective: Pretraining = "classification",
    output: Output = "linear",
    temperature: float = 0.1,
    precision: Precision = "float32",
    seed: int = 0,
) -> OuterLoop:
    """The outer loop that pretrains `model`: classification of all training classes, or contrast between them, or the
    tasks' own objective on the examples of many tasks in one bag where the source has no classes. `finish` it when it
    is done."""
    for name, given, known in (
        ("objective", objective, Pretraining),
        ("output", output, Output),
        ("precision", precision, Precision),
    ):
        if given not in get_args(known):
            raise ValueError(f"{name} must be {' or '.join(get_args(known))}, got {given!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    classify = source.objective.task_specific_classes
    if objective == "contrastive" and not classify:
        raise ValueError("contrastive pretraining draws examples of a class together, and these tasks have no classes")
    example = source.pretraining_batch(0, settings.size)
    module: nn.Module = model
    fixed = None
    if classify:
        device = next(model.parameters()).device
        fixed = f"model.{head}."
        inputs, classes = tree_map(lambda leaf: leaf[:2].to(device), example.inputs), example.targets.shape[1]
        layer = None if objective == "contrastive" else output
        module = Classifier(model, classes, inputs, head=head, output=layer, seed=seed).to(device)

    # Twice as fast for plain convolutions on a CPU.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def backward(module: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(batch.weight.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            prediction = tree_map(
                lambda leaf: leaf.float() if leaf.dtype == torch.bfloat16 else leaf, module(batch.inputs)
            )
        if objective == "contrastive":
            loss = contrastive(prediction, batch.targets, batch.weight, temperature)
        else:
            loss = source.objective.loss(prediction, batch)
        loss.backward()
        return loss.detach()

    begin = first_task(seed)
    return OuterLoop(
        module, lambda step, size: source.pretraining_batch(begin + step, size), backward, settings, seed, fixed
    )


def finish(loop: OuterLoop) -> None:
    """What remains to be done after the last step of `pretraining`: a head of zeros, and the usual memory layout."""
    if isinstance(loop.module, Classifier):
        loop.module.forget_head()
    loop.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def pretrain(
    model: nn.Module,
    source: TaskSource,
    *,
    steps: int,
    batch: int = 128,
    outer_lr: float = 1e-3,
    head: str = "head",
    objective: Pretraining = "classification",
    output: Output = "linear",
    temperature: float = 0.1,
    precision: Precision = "float32",
    seed: int = 0,
    observe: Callable[[Progress], None] | None = None,
) -> list[float]:
    """Pretrain a base model, in place, on the training split without tasks.

    Where the source has classes: plain classification of all of them through a new linear layer on the features (what
    enters the module named `head`). At the end the new layer is thrown away, and the head is set to zero: the first
    inner steps of a task then classify by the features' similarity. Else: the examples of many tasks in one bag.

    Args:
        model: any module; BatchNorm trains as usual, running statistics included.
        source: whose training split is read.
        steps: optimiser steps.
        batch: examples of a step.
        outer_lr: Adam's rate, falling by a cosine.
        head: the module whose input are the features.
        objective: "classification" as above, or "contrastive": features of a class are drawn together and others apart,
            see `contrastive`; there is no new layer then. It suits pretrained encoders of sentences.
        output: the new layer: "linear", or "cosine", which suits learners that compare features by their angle.
        temperature: of the contrastive loss; the lower, the more the nearest of other classes count.
        precision: "bfloat16" computes convolutions and matrix products in it, which is up to twice as fast where the
            processor has instructions for it; weights, losses and the new layer stay float32.
        seed: of the new layer, of dropout and the like, and of which training examples are drawn.
        observe: called with a `Progress` after each step.

    Returns:
        The loss of each step.

    Raises:
        ValueError: an objective, an output or a precision that is none of these, or contrast without classes.

    Example:
        >>> from kshot.models.backbones import mlp
        >>> from kshot.sources.functions import sinusoids
        >>> len(pretrain(mlp(1, 1), sinusoids(), steps=2, batch=40))
        2

    References:
        Chen et al.: A Closer Look at Few-shot Classification, ICLR 2019, arXiv:1904.04232 (the pretraining stage; the
        cosine layer is its Baseline++). Tunstall et al.: Efficient Few-Shot Learning Without Prompts, arXiv:2209.11055
        (SetFit: contrast, then a head).

    Deviations:
        Contrast takes all pairs of a batch under one softmax, where SetFit regresses the cosine of single pairs on 0
        and 1.
    """
    settings = Settings(outer_lr, clip=None, horizon=steps, size=batch)
    with during(source, "pretraining"):
        loop = pretraining(
            model,
            source,
            settings,
            head=head,
            objective=objective,
            output=output,
            temperature=temperature,
            precision=precision,
            seed=seed,
        )
        losses = loop.run(steps, observe)
    finish(loop)
    return losses


def fit_feature_statistics(
    learner: HeadLearner, source: TaskSource, *, batches: int | None = None, batch: int = 128
) -> None:
    r"""Measure what a learner's head is to know of the training classes: for SimpleShot the centre of the features,

    $$ \mu = \frac{\sum_i w_i f_\theta(x_i)}{\sum_i w_i}, $$

    for PLDA the spread within and between classes too.

    Measure it anew when the embedding has been trained further.

    Args:
        learner: whose head is, or holds, a `learners.metric.FeatureStatistics`; changed in place.
        source: whose training split is read.
        batches: how many batches of examples; by default as many as the head asks for.
        batch: examples of each.

    Raises:
        ValueError: a learner without such a head.

    Example:
        >>> learner = kshot.learners.simpleshot(nn.Flatten(), features=1)
        >>> fit_feature_statistics(learner, kshot.sources.sinusoids())
        >>> learner.head.centre.shape
        torch.Size([1])
    """
    heads = [part for part in learner.modules() if isinstance(part, FeatureStatistics)]
    if not heads:
        raise ValueError("this learner's features have no centre; simpleshot's, laplacian_shot's and plda's have one")
    device, was_training = next(heads[0].buffers()).device, learner.training
    count = max(head.batches for head in heads) if batches is None else batches
    learner.eval()
    try:
        with torch.no_grad():
            taken = [to(source.pretraining_batch(step, batch), device) for step in range(count)]
            features = torch.cat([learner.embed(examples)[0] for examples in taken])
            targets, weight = (torch.cat([getattr(one, name) for one in taken]) for name in ("targets", "weight"))
            for head in heads:
                head.measure(features, targets, weight)
    finally:
        learner.train(was_training)
