"""Ordinary training of a base model before meta-training: no tasks, one bag of examples.

Shape legend: n examples, D features, C training classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kshot.learners.heads import HeadLearner
from kshot.learners.metric import Centred
from kshot.tasks.source import TaskSource
from kshot.training.fit import OuterLoop, Progress, Settings, first_task, seeded
from kshot.types import Batch, to


class Classifier(nn.Module):
    r"""A model's features under a new linear layer over all training classes.

    The features are what reaches the model's own `head` (its last linear layer, which is put aside), or what the model
    gives if it has none.

    Args:
        model: whose features are trained, in place.
        classes: C, the classes of the training split.
        example: inputs (n, ...) to measure the features with.
        head: qualified name of the module to put aside; ignored where the model has no such module.
        seed: of the new layer's initial weights.
    """

    def __init__(self, model: nn.Module, classes: int, example: Tensor, *, head: str = "head", seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self._head = head if head in dict(model.named_modules()) else None
        was_training = model.training
        model.eval()  # measuring must not move BatchNorm's running statistics
        with torch.no_grad():
            width = self.features(example).shape[1]
        model.train(was_training)
        with seeded(seed):
            self.output = nn.Linear(width, classes)

    def features(self, inputs: Tensor) -> Tensor:
        """What the model makes of inputs (n, ...) before its head: (n, D)."""
        if self._head is None:
            return self.model(inputs).flatten(1)
        seen: list[Tensor] = []
        hook = self.model.get_submodule(self._head).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.model(inputs)
        finally:
            hook.remove()
        return seen[0].flatten(1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.features(inputs))

    def forget_head(self) -> None:
        """Set the model's own head to zero: what it is to tell apart is for the tasks to say."""
        if self._head is not None:
            for parameter in self.model.get_submodule(self._head).parameters():
                nn.init.zeros_(parameter)


def pretraining(
    model: nn.Module,
    source: TaskSource,
    settings: Settings,
    *,
    head: str = "head",
    seed: int = 0,
) -> OuterLoop:
    """The outer loop that pretrains `model`: classification of all training classes, or the tasks' own objective on
    the examples of many tasks in one bag where the source has no classes. `finish` it when it is done."""
    classify = source.objective.own_classes
    example = source.pretraining_batch(0, settings.size)
    module: nn.Module = model
    fixed = None
    if classify:
        device = next(model.parameters()).device
        fixed = f"model.{head}."
        module = Classifier(model, example.targets.shape[1], example.inputs[:2].to(device), head=head, seed=seed)
        module.to(device)

    # Twice as fast for plain convolutions on a CPU.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def backward(module: nn.Module, batch: Batch) -> Tensor:
        loss = source.objective.loss(module(batch.inputs), batch)
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
        seed: of the new layer, of dropout and the like, and of which training examples are drawn.
        observe: called with a `Progress` after each step.

    Returns:
        The loss of each step.

    Example:
        >>> from kshot.models.backbones import mlp
        >>> from kshot.tasks.synthetic import sinusoids
        >>> len(pretrain(mlp(1, 1), sinusoids(), steps=2, batch=40))
        2

    References:
        Chen et al.: A Closer Look at Few-shot Classification, ICLR 2019, arXiv:1904.04232 (the pretraining stage).
    """
    settings = Settings(outer_lr, clip=None, horizon=steps, size=batch)
    loop = pretraining(model, source, settings, head=head, seed=seed)
    losses = loop.run(steps, observe)
    finish(loop)
    return losses


def fit_centre(learner: HeadLearner, source: TaskSource, *, batches: int = 16, batch: int = 128) -> None:
    r"""Set the centre of a learner's features, such as SimpleShot's, to their mean over training examples.

    $$ \mu = \frac{\sum_i w_i f_\theta(x_i)}{\sum_i w_i} $$

    Measure it anew when the embedding has been trained further.

    Args:
        learner: whose head is, or holds, a `learners.metric.Centred`; changed in place.
        source: whose training split is read.
        batches: how many batches of examples.
        batch: examples of each.

    Raises:
        ValueError: a learner without such a head.

    Example:
        >>> learner = kshot.simpleshot(nn.Flatten(), features=1)
        >>> fit_centre(learner, kshot.tasks.sinusoids())
        >>> learner.head.centre.shape
        torch.Size([1])
    """
    heads = [part for part in learner.modules() if isinstance(part, Centred)]
    if not heads:
        raise ValueError("this learner's features have no centre; simpleshot's and laplacian_shot's have one")
    device, was_training = heads[0].centre.device, learner.training
    learner.eval()
    try:
        with torch.no_grad():
            total, count = torch.zeros_like(heads[0].centre), 0.0
            for step in range(batches):
                examples = to(source.pretraining_batch(step, batch), device)
                total += examples.weight @ learner.embed(examples)[0]
                count += float(examples.weight.sum())
            for head in heads:
                head.centre.copy_(total / count)
    finally:
        learner.train(was_training)
