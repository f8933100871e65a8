"""Learners that adapt by gradient descent: MAML and its relatives, as factories over update rules × solvers."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import Tensor, nn

from kshot import objectives
from kshot.inner.functional import BatchNorm, Function
from kshot.inner.rules import SGD
from kshot.inner.solvers import FirstOrder, InnerSolver, Unrolled
from kshot.learner import Learner
from kshot.objectives import Objective
from kshot.types import Batch, Params, Tree


class GradientLearner(Learner):
    r"""Adapts (part of) a module's parameters to the support loss by a solver; predicts with the adapted module.

    $$ \theta_K = \text{solve}(L_{\text{support}}, \theta_0), \qquad \text{predict}(x) = f_{\theta_K}(x) $$

    The state is `{"params": {name: tensor}, "statistics": {call: {"mean", "var"}}}`; the latter is there for
    BatchNorm on support statistics only.

    Args:
        model: any module that takes the task's inputs and gives what the objective scores. It is used as it is and
            stays yours: its parameters are the meta-parameters.
        objective: what the tasks ask.
        solver: how the inner problem is solved and differentiated.
        adaptable: names of the parameters that adapt, as a shell pattern such as "head.*". The others are shared by
            all tasks, and meta-learned. Parameters with `requires_grad=False` neither adapt nor learn.
        batchnorm: which statistics BatchNorm uses for a query (see `inner.functional.BatchNorm`). While adapting it is
            the support set's own, or the running ones.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        solver: InnerSolver,
        *,
        adaptable: str = "*",
        batchnorm: BatchNorm = "support",
    ) -> None:
        super().__init__(objective)
        self.model, self.solver, self.adaptable = model, solver, adaptable
        self.function = Function(model, batchnorm)
        self.transductive = self.function.transductive
        if not self.adaptable_params():
            names = ", ".join(name for name, _ in model.named_parameters()) or "none at all"
            raise ValueError(f"no trainable parameter of the model matches adaptable={adaptable!r}; it has: {names}")

    def adaptable_params(self) -> Params:
        """The parameters that adapt, by name, at their meta-learned values."""
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and fnmatchcase(name, self.adaptable)
        }

    def adapt(self, support: Batch, *, steps: int | None = None) -> Tree:
        """Adapt to a support set; `steps` overrides the solver's number of inner steps."""

        def loss(params: Params) -> Tensor:
            prediction, _ = self.function.support(params, support)
            return self.objective.loss(prediction, support)

        params = self.solver(loss, self.adaptable_params(), steps)
        if not self.function.keeps_statistics:
            return {"params": params}
        _, statistics = self.function.support(params, support)
        return {"params": params, "statistics": statistics}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        return self.function.query(state["params"], state.get("statistics", {}), inputs)


def maml(
    model: nn.Module,
    *,
    inner_lr: float,
    steps: int = 1,
    order: int = 2,
    objective: Objective = objectives.classification,
    adaptable: str = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Model-agnostic meta-learning: an initialisation from which a few gradient steps solve a new task.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k), \qquad
       \min_{\theta_0} \; \mathbb{E}_{\text{task}} \; L_{\text{query}}(\theta_K) $$

    Args:
        model: any module: inputs (n, ...) to predictions (n, ...).
        inner_lr: $\alpha$, the inner learning rate.
        steps: $K$, the inner steps.
        order: 2 differentiates through the inner steps exactly; 1 is the first-order approximation (FOMAML).
        objective: what the tasks ask; `objectives.classification` or `objectives.mse`, or your own.
        adaptable: shell pattern of the parameters that adapt.
        batchnorm: "support" (inductive), "query" (transductive, the original code's choice) or "running".

    Returns:
        A learner; train it with `kshot.fit`, or with any outer optimiser over `learner.parameters()`.

    Raises:
        ValueError: an order other than 1 or 2, a rate not above 0, a pattern that matches nothing.

    Example:
        >>> learner = maml(torch.nn.Linear(1, 1), inner_lr=0.1, objective=objectives.mse)
        >>> state = learner.adapt(Batch.of(torch.ones(4, 1), torch.ones(4, 1)))
        >>> learner.predict(state, torch.ones(2, 1)).shape
        torch.Size([2, 1])

    References:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400.

    Deviations:
        BatchNorm uses support statistics for the query by default; the paper's code normalises the query by its own,
        which lets a prediction see the other queries.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 2 (exact) or 1 (first-order approximation), got {order!r}")
    solver = (Unrolled if order == 2 else FirstOrder)(SGD(inner_lr), steps)
    return GradientLearner(model, objective, solver, adaptable=adaptable, batchnorm=batchnorm)
