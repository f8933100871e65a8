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
    """

    fitted: Tensor

    @abstractmethod
    def fit_to_training(self, source: TaskSource) -> None:
        """Estimate, in place, from the split "train" of a source; `training.fit_closed_form` calls it."""
