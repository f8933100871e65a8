"""MAML++: MAML with measures that stabilise its training."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kshot import objectives
from kshot.annotations import Fraction, NonNegativeInt, PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.inner.per_parameter import LearnedRate, Pattern, PerParameter, adaptable_params
from kshot.inner.rules import SGD
from kshot.inner.solvers import Annealed
from kshot.learners.gradient.gradient_learner import GradientLearner, PerStep
from kshot.learners.gradient.outer_losses import MultiStepLoss
from kshot.objectives import Objective
from kshot.supplied import BaseModel
from kshot.types import Params


class PerStepNorm(PerStep):
    """Scale and shift of every BatchNorm, learned for each inner step; after the last step the model's own are used.

    Args:
        model: provides the initial values.
        steps: number of inner steps.

    Attributes:
        names: the BatchNorm parameters of the model.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        norms = {
            f"{path}.{name}" if path else name: parameter
            for path, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        self.names, self.steps = list(norms), steps
        self.values = PerParameter(
            {name: parameter.detach().expand(steps, *parameter.shape) for name, parameter in norms.items()}
        )

    def forward(self, step: int) -> Params:
        return {name: self.values[name][step] for name in self.names} if step < self.steps else {}


def maml_pp(
    model: BaseModel,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 5,
    multi_step: Fraction = 0.15,
    first_order: Fraction = 0.3,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""MAML++: learned rates per tensor and step, an annealed loss after every step, and BatchNorm per step.

    $$ \theta_{i,k+1} = \theta_{ik} - \alpha_{ik} \nabla_i L_{\text{support}}(\theta_k; \gamma_k, \beta_k), \qquad
       \min_{\theta_0, \alpha, \gamma, \beta} \; \mathbb{E}_{\text{task}}
       \sum_{k=1}^K v_k L_{\text{query}}(\theta_k; \gamma_k, \beta_k) $$

    The weights $v$ go from equal to the last step alone (see `MultiStepLoss`). The trainer reports its progress by
    `Learner.set_progress`.

    Args:
        model, objective: as in `maml`.
        inner_lr: initial value of all rates $\alpha$.
        steps: $K$, the number of inner steps.
        multi_step: fraction of meta-training, 0 to 1, over which the losses of the earlier steps fade.
        first_order: fraction of meta-training, 0 to 1, that is first-order.
        adaptable: the parameters that adapt. BatchNorm's scale $\gamma$ and shift $\beta$ never do; they are learned
            for each step.
        batchnorm: as in `maml`. With "support" the statistics too are recomputed at each step.

    Returns:
        A learner; while it is not trained it behaves as with `multi_step=0, first_order=0`.

    Example:
        >>> learner = maml_pp(nn.Linear(3, 2), inner_lr=0.1, steps=5)
        >>> [tuple(rate.shape) for rate in learner.solver.rule.parameters()]
        [(5,), (5,)]

    References:
        Antoniou, Edwards, Storkey: How to train your MAML, ICLR 2019, arXiv:1810.09502.

    Deviations:
        The paper keeps running statistics for each step and normalises every batch, queries too, by its own, which is
        transductive; here each step uses the support set's statistics under that step's weights. There are K + 1 sets
        of $\gamma$ and $\beta$: the queries after step k are normalised by those of the next pass over the support,
        after the last step by the model's own. The authors' code has K, and the queries after step k use the set of the
        pass before it. The weights of early losses fade to 0, where in the authors' code they fade to 0.03 / K and are
        then dropped. The cosine schedule of the outer rate is the trainer's, and the outer gradient is not clipped.
    """
    norms = PerStepNorm(model, steps)
    patterns = [adaptable] if isinstance(adaptable, str) else list(adaptable)
    patterns += [f"!{name}" for name in norms.names]
    rate = LearnedRate(adaptable_params(model, patterns), inner_lr, per="tensor", steps=steps)
    return GradientLearner(
        model,
        objective,
        Annealed(SGD(rate), steps, until=first_order),
        adaptable=patterns,
        batchnorm=batchnorm,
        per_step=norms if norms.names else None,
        outer=MultiStepLoss(multi_step),
    )
