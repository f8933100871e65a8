"""The contract between everything that adapts and everything that trains, evaluates or serves it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from kshot.objectives import Objective
from kshot.types import Batch, Task, Tree


class Scheduled(nn.Module):
    """A module that changes in the course of training: a learner, a solver, `models.DropBlock`, or one of yours."""

    def set_progress(self, progress: float) -> None:
        """Told by the trainer before each step: how far the training is, from 0 to 1. By default the parts are told.

        It is a function of the step, so a resumed run needs no memory of it. A module that was never told is to behave
        as at 1.
        """
        for part in self.children():
            set_progress(part, progress)


def set_progress(module: nn.Module, progress: float) -> None:
    """Tell a module, or what is scheduled among its parts, how far the training is, from 0 to 1."""
    if isinstance(module, Scheduled):
        module.set_progress(progress)
    else:
        for part in module.children():
            set_progress(part, progress)


class Learner(Scheduled, ABC):
    r"""How a base model adapts to one task and predicts on it. Its parameters $\theta$ are the meta-parameters.

    A learner is written for ONE task; the trainer batches. Subclasses supply

    $$ \text{state} = \text{adapt}_\theta(\text{support}), \qquad \hat y = \text{predict}_\theta(\text{state}, x). $$

    `adapt` is pure: weights and buffers are left bitwise as they were. The state holds everything that is particular
    to the task, as nested dicts with string keys and tensors for leaves, so that it can be saved (see
    `training.checkpoint.save_state`), sent and stacked.

    Attributes:
        objective: what the tasks ask.
        transductive: True if a query's prediction depends on the other queries. Every report says so.
        ordered: True if the order of the support's rows matters, padding among them, as where steps go by minibatches.
        causal_queries: True if queries are read in order, each prediction made from those before it: transductive, but
            causal.
        annealed: True if `set_progress` changes the outer loss; such a learner is not compiled once for all steps.
    """

    objective: Objective
    transductive: bool = False
    ordered: bool = False
    causal_queries: bool = False
    annealed: bool = False

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    @abstractmethod
    def adapt(self, support: Batch) -> Tree:
        """Adapt to a task: support leaves (n, ...) in, the task's state out."""

    @abstractmethod
    def predict(self, state: Tree, inputs: Tree) -> Tree:
        """Predict for inputs (m, ...) under a task's state: (m, ...), logits (m, ways) for classification."""

    def extend(self, state: Tree, support: Batch) -> Tree:
        """A state that knows more examples, of the classes it has and of new ones, without seeing the old ones again.

        Args:
            state: of a support set of C classes; it stays as it is.
            support: further examples; targets one-hot (n, C' ≥ C), the new classes behind the old.

        Raises:
            ValueError: a learner whose states cannot be extended.
        """
        raise ValueError(
            f"a state of {type(self).__name__} cannot take in further classes: adapt anew to all examples together, or "
            "take a learner that fits a head to features, such as protonet, plda or r2d2"
        )

    def forward(self, task: Task) -> Tensor:
        r"""The outer loss of one task, (): the objective on the query set, predicted after adapting to the support."""
        return self.objective.loss(self.predict(self.adapt(task.support), task.query.inputs), task.query)
