"""MAML++: MAML with the measures that make its training stable."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kshot import objectives
from kshot.annotations import Fraction, NonNegativeInt, PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.inner.per_parameter import Pattern, PerParameter, adaptable_params
from kshot.inner.rates import LearnedRate
from kshot.inner.rules import SGD
from kshot.inner.solvers import Annealed
from kshot.learners.gradient.maml import GradientLearner, PerStep
from kshot.learners.gradient.outer_losses import MultiStepLoss
from kshot.objectives import Objective
from kshot.types import Params


class PerStepNorm(PerStep):
    """Scale and shift of every BatchNorm, learned apart for each inner step; the model's own hold after the last.

    Args:
        model: whose BatchNorm parameters these start from.
        steps: inner steps.

    Attributes:
        names: the BatchNorm parameters of the model.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        norms = {
            f"{place}.{name}" if place else name: parameter
            for place, part in model.named_modules()
            if isinstance(part, _BatchNorm)
            for name, parameter in part.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        self.names, self.steps = list(norms), steps
        self.values = PerParameter(
            {name: parameter.detach().expand(steps, *parameter.shape) for name, parameter in norms.items()}
        )

    def forward(self, step: int) -> Params:
        return {name: self.values[name][step] for name in self.names} if step < self.steps else {}


def maml_pp(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 5,
    multi_step: Fraction = 0.15,
    first_order: Fraction = 0.3,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""MAML++: learned rates for each tensor and step, a loss after every step, annealed, and BatchNorm for each step.

    $$ \theta_{i,k+1} = \theta_{ik} - \alpha_{ik} \nabla_i L_{\text{support}}(\theta_k; \gamma_k, \beta_k), \qquad
       \min_{\theta_0, \alpha, \gamma, \beta} \; \mathbb{E}_{\text{task}} \sum_{k=1}^K v_k L_{\text{query}}(\theta_k) $$

    The weights $v$ go from equal to the last step alone (`learners.outer.MultiStepLoss`). The trainer tells how far it
    is by `Learner.set_progress`.

    Args:
        model, objective: as in `maml`.
        inner_lr: from where all rates $\alpha$ start.
        steps: $K$.
        multi_step: the part of meta-training, 0 to 1, over which the losses of the earlier steps fade.
        first_order: the part of meta-training, 0 to 1, that is first-order.
        adaptable: the parameters that adapt. BatchNorm's scale $\gamma$ and shift $\beta$ never do; they are learned
            for each step.
        batchnorm: as in `maml`. With "support" the statistics too are those of each step, computed anew.

    Returns:
        A learner; the same as with `multi_step=0, first_order=0` wherever nobody trains it.

    Raises:
        ValueError: as `maml`, and parts outside 0 … 1.

    Example:
        >>> learner = maml_pp(nn.Linear(3, 2), inner_lr=0.1, steps=5)
        >>> [tuple(rate.shape) for rate in learner.solver.rule.parameters()]
        [(5,), (5,)]

    References:
        Antoniou, Edwards, Storkey: How to train your MAML, ICLR 2019, arXiv:1810.09502.

    Deviations:
        The paper keeps running statistics for each step and normalises every batch, queries too, by its own, which is
        transductive; here each step uses the support set's statistics under that step's weights. The weights of early
        losses fade to 0 rather than to 0.03 / K. The cosine of the outer rate is the trainer's.
    """
    norms = PerStepNorm(model, steps)
    patterns = [adaptable] if isinstance(adaptable, str) else list(adaptable)
    inner = [*patterns, *(f"!{name}" for name in norms.names)]
    rate = LearnedRate(adaptable_params(model, inner), inner_lr, per="tensor", steps=steps)
    return GradientLearner(
        model,
        objective,
        Annealed(SGD(rate), steps, until=first_order),
        adaptable=inner,
        batchnorm=batchnorm,
        per_step=norms if norms.names else None,
        outer=MultiStepLoss(multi_step),
    )
