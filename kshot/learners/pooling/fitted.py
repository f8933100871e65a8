"""The protocol of learners that are fitted to the training split in closed form."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from kshot.learner import Learner
from kshot.tasks.source import TaskSource


class FittedToTraining(Learner):
    """A learner that estimates its parameters from the training split in closed form, before gradient steps if any.

    Attributes:
        fitted: buffer (), 1 once it was fitted, so that a checkpoint says so too.
        after_training: True if the estimates depend on parameters that are trained. Then `training.fit` makes them
            after the gradient steps, and a run before each validation.
    """

    fitted: Tensor
    after_training: bool = False

    @abstractmethod
    def fit_to_training(self, source: TaskSource) -> None:
        """Estimate, in place, from the split "train" of a source; `training.fit_closed_form` calls it."""
