"""Pretraining of a base model before meta-training, on examples instead of tasks.

Shape legend: n examples, D features, C training classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from kshot.annotations import PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.precision import Precision, Scales, autocast, check_master_weights, mixing, scaled
from kshot.learner import evaluation_mode
from kshot.learners.heads.distances import cosine
from kshot.objectives.outputs import the_tensor
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource, check_source
from kshot.training.fit import OuterLoop, Progress, Settings, first_task, seeded
from kshot.training.loss_scale import LossScale
from kshot.types import Batch, Tree, to

Output = Literal["linear", "cosine"]
PretrainingObjective = Literal["classification", "contrastive"]

SCALE = 20.0  # of cosine logits, so that probabilities can approach 0 and 1


class CosineLayer(nn.Module):
    r"""Cosine logits $s \cos(w_c, f)$ (n, C) of features (n, D), with $s$ = `SCALE`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        # of length about 1: Adam needs more steps to rotate a longer vector
        self.weight = nn.Parameter(torch.randn(classes, features) * features**-0.5)

    def forward(self, feat_nD: Tensor) -> Tensor:
        return SCALE * cosine(feat_nD, self.weight)


class Classifier(nn.Module):
    r"""The features of a model, with an optional new layer over all training classes.

    The features are the input of the model's `head`, which is not used, or the output of a model without one.

    Args:
        model, head, output, seed: as in `pretrain`; without an output layer the results are the features.
        classes: C, number of classes of the training split.
        example: inputs (n, ...), to infer the width of the features.
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
        with evaluation_mode(model):  # the running statistics of BatchNorm must not change
            width = self.features(example).shape[1]
        with seeded(seed):
            self.output = {"linear": nn.Linear, "cosine": CosineLayer}[output](width, classes)

    def features(self, inputs: Tree) -> Tensor:
        """Features (n, D) of inputs (n, ...)."""
        if self._head is None:
            return the_tensor(self._call_model(inputs), "holds the features").flatten(1)
        head, head_inputs = self.model.get_submodule(self._head), list[Tensor]()
        hook = head.register_forward_pre_hook(lambda module, args: head_inputs.append(args[0]))
        try:
            self._call_model(inputs)
        finally:
            hook.remove()
        return head_inputs[0].flatten(1)

    def _call_model(self, inputs: Tree) -> Tensor:
        return self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)

    def forward(self, inputs: Tree) -> Tensor:
        features = self.features(inputs)
        with torch.autocast(features.device.type, enabled=False):  # many classes need accurate logits
            return self.output(features.float())

    def zero_head(self) -> None:
        """Set the head of the model to zero, since the tasks define their own classes."""
        if self._head is not None:
            for parameter in self.model.get_submodule(self._head).parameters():
                nn.init.zeros_(parameter)


def contrastive(feat_nD: Tensor, target_nC: Tensor, weight_n: Tensor, temperature: PositiveFloat) -> Tensor:
    r"""The supervised contrastive loss (), which pulls examples of a class together and pushes others away:

    $$ \frac{1}{|A|} \sum_{i \in A} \frac{-1}{|P_i|} \sum_{p \in P_i}
       \log \frac{\exp(\cos(f_i, f_p) / \tau)}{\sum_{j \ne i} \exp(\cos(f_i, f_j) / \tau)} $$

    with $P_i$ the other examples of the class of i, and $A$ the examples with a non-empty $P_i$; $\tau$ is the
    temperature, targets are one-hot, and rows of weight 0 have no effect.

    Example:
        >>> feat = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> float(contrastive(feat, torch.eye(2)[[0, 0, 1]], torch.ones(3), 1.0))
        0.313...

    References:
        Khosla et al.: Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362 ($L_{out}$).
    """
    similarity_nn = cosine(feat_nD, feat_nD) / temperature
    real_n = weight_n > 0
    valid_nn = real_n & ~torch.eye(len(feat_nD), dtype=torch.bool, device=feat_nD.device)
    positive_nn = (target_nC @ target_nC.mT) * valid_nn * real_n[:, None]
    log_prob_nn = torch.log_softmax(similarity_nn.masked_fill(~valid_nn, torch.finfo(similarity_nn.dtype).min), 1)
    count_n = positive_nn.sum(1)
    loss_n = -(log_prob_nn * positive_nn).sum(1) / count_n.clamp_min(1)
    return loss_n.sum() / (count_n > 0).sum().clamp_min(1)


@check_arguments
def pretraining_loop(
    model: nn.Module,
    source: TaskSource,
    settings: Settings,
    *,
    head: str = "head",
    objective: PretrainingObjective = "classification",
    output: Output = "linear",
    temperature: PositiveFloat = 0.1,
    precision: Precision = "float32",
    seed: int = 0,
) -> OuterLoop:
    """The outer loop of `pretrain`, with its arguments; call `finish_pretraining` after the last step."""
    check_master_weights(dict(model.named_parameters()), precision)
    classify = source.objective.task_specific_classes
    if objective == "contrastive" and not classify:
        raise ValueError(
            "contrastive pretraining needs classes, and these tasks have no classes; use objective='classification'"
        )
    module, example = model, source.pretraining_batch(0, settings.size)
    if classify:
        device = next(model.parameters(), example.weight).device
        inputs = to(example.rows(slice(2)).inputs, device)
        layer = None if objective == "contrastive" else output
        module = Classifier(model, example.targets.shape[1], inputs, head=head, output=layer, seed=seed).to(device)

    # twice as fast for convolutions on a CPU
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    scale = LossScale() if precision == "float16" else None
    takes_names = not classify and isinstance(example.inputs, dict)

    def backward(module: nn.Module, batch: Batch) -> Tensor:
        scales = Scales() if scale is None else scale.scales(batch.weight.device)
        with mixing(precision, scales), autocast(batch.weight.device):
            output = module(**batch.inputs) if takes_names else module(batch.inputs)
            prediction = source.objective.scored(output)
        if objective == "contrastive":
            loss = contrastive(prediction, batch.targets, batch.weight, temperature)
        else:
            loss = source.objective.loss(prediction, batch)
        scaled(loss, scales.outer).backward()
        for parameter in module.parameters():
            if scales.outer is not None and parameter.grad is not None:
                parameter.grad /= scales.outer
        return loss.detach()

    first, fixed = first_task(seed), f"model.{head}." if classify else None
    return OuterLoop(
        module, lambda step, size: source.pretraining_batch(first + step, size), backward, settings, seed, fixed,
        scale=scale,
    )  # fmt: skip


def finish_pretraining(loop: OuterLoop) -> None:
    """After the last step of `pretraining_loop`: set the head to zero and restore the contiguous memory format."""
    if isinstance(loop.module, Classifier):
        loop.module.zero_head()
    loop.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def pretrain(
    model: nn.Module,
    source: TaskSource,
    *,
    steps: PositiveInt,
    batch: PositiveInt = 128,
    outer_lr: PositiveFloat = 1e-3,
    head: str = "head",
    objective: PretrainingObjective = "classification",
    output: Output = "linear",
    temperature: PositiveFloat = 0.1,
    precision: Precision = "float32",
    seed: int = 0,
    observe: Callable[[Progress], None] | None = None,
) -> list[float]:
    """Pretrain a base model, in place, on the examples of the training split; afterwards it is in evaluation mode.

    If the source has classes, a new layer on the features (the input of the module `head`) classifies all of them. At
    the end the new layer is discarded and the head is set to zero: the first inner steps of a task then classify by the
    similarity of features. Otherwise the model is trained with the objective of the tasks on examples of many tasks.

    Args:
        model: any module; BatchNorm updates its running statistics.
        source: source of the examples; only the split "train" is read.
        steps, batch: number of steps, and of examples per step.
        outer_lr: learning rate of Adam, with a cosine schedule.
        head: qualified name of the module whose input is the features; a model without it outputs features.
        objective: "classification" as above, or "contrastive", the loss of `contrastive` on the features, without a new
            layer; it suits pretrained sentence encoders.
        output: the new layer: "linear", or "cosine", the cosine similarity to a weight vector of each class, for
            learners that compare features by their angle.
        temperature: of the contrastive loss; at low values the nearest examples of other classes dominate.
        precision: of convolutions and matrix products, as in `fit`; "bfloat16" is up to twice as fast on processors
            that support it. Weights, losses and the new layer stay float32.
        seed: random seed of the new layer, the choice of training examples and dropout.
        observe: called with a `Progress` after each step.

    Returns:
        The loss of each step.

    Raises:
        ValueError: an unknown objective, output or precision; a precision other than float32 for parameters that are
            not; a contrastive loss for tasks without classes.

    Example:
        >>> len(pretrain(kshot.models.mlp(1, 1), kshot.sources.sinusoids(), steps=2, batch=40))
        2

    References:
        Chen et al.: A Closer Look at Few-shot Classification, ICLR 2019, arXiv:1904.04232 (the pretraining stage; the
        cosine layer is its Baseline++). Tunstall et al.: Efficient Few-Shot Learning Without Prompts, arXiv:2209.11055
        (SetFit: contrastive training, then a head; SetFit regresses the cosine of single pairs on 0 and 1, here all
        pairs of a batch are in one softmax).
    """
    check_source(source)
    settings = Settings(outer_lr, clip=None, horizon=steps, size=batch)
    with during(source, "pretraining"):
        loop = pretraining_loop(
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
    finish_pretraining(loop)
    return losses
