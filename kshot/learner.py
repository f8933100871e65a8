"""The contract between everything that adapts and everything that trains, evaluates or serves it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from kshot.objectives import Objective
from kshot.objectives.outputs import in_float32
from kshot.query_weight import query_weight
from kshot.types import Batch, Task, Tree, has_values, tree_leaves, tree_map


class Scheduled(nn.Module):
    """A module that changes in the course of training, such as a learner, a solver or `models.DropBlock`."""

    def set_progress(self, progress: float) -> None:
        """Receive the progress of training, from 0 to 1, before each step; by default pass it on to the children.

        Progress is a function of the step. A module whose progress was never set must behave as at 1.
        """
        for child in self.children():
            set_progress(child, progress)


def set_progress(module: nn.Module, progress: float) -> None:
    """Pass the progress of training, from 0 to 1, to a module or to its scheduled submodules."""
    if isinstance(module, Scheduled):
        module.set_progress(progress)
    else:
        for child in module.children():
            set_progress(child, progress)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """A context with a module in evaluation mode, and without gradients; afterwards all its parts are as before."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:  # not module.train(), which would set parts that were in evaluation mode too
            part.training = True


class Learner(Scheduled, ABC):
    r"""How a base model adapts to one task and predicts on it. Its parameters $\theta$ are the meta-parameters.

    $$ \text{state} = \text{adapt}_\theta(\text{support}), \qquad \hat y = \text{predict}_\theta(\text{state}, x) $$

    A learner is written for ONE task; the trainer batches. To write one, subclass this and implement `_adapt` and
    `predict`; call `adapt`, which checks the support set against the objective and passes it and its keyword arguments
    on to `_adapt`, so that `_adapt(self, support, *, steps=None)` adds an option.

    `_adapt` is pure: it leaves weights and buffers bitwise as they were. The state holds everything that is particular
    to the task, as nested dicts with string keys and tensors for leaves, so that it can be saved (see
    `training.checkpoint.save_state`), sent and stacked.

    Args:
        objective: loss and metrics of the tasks.

    Attributes:
        transductive: True if a query's prediction depends on the other queries. Every report says so.
        ordered: True if the order of the support rows matters, rows of weight 0 included, as with minibatches.
        causal_queries: True if queries are read in order and each is predicted from those before it. Such a learner is
            not inductive, whatever `transductive` says.
        num_members: number of learners whose predictions it combines, if it is an ensemble. Every report says so.
        annealed: True if `set_progress` changes the outer loss; such a learner is not compiled once for all steps.
    """

    objective: Objective
    transductive: bool = False
    ordered: bool = False
    causal_queries: bool = False
    num_members: int = 1
    annealed: bool = False

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    @property
    def inference(self) -> Literal["inductive", "causal", "transductive"]:
        """What a prediction depends on: its own query alone, those before it as well, or any others."""
        return "causal" if self.causal_queries else "transductive" if self.transductive else "inductive"

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; by default those that require gradients."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @final
    def adapt(self, support: Batch, **options: Any) -> Tree:
        """Adapt to the examples of a task, leaves (n, ...): returns the state of the task, for `predict`.

        Raises:
            ValueError: the support set's shapes or dtypes disagree, or do not fit the objective.
        """
        self._check_support(support)
        if not torch.is_inference_mode_enabled():
            return self._adapt(support, **options)
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode have no derivatives
            return self._adapt(tree_map(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, support), **options)

    @abstractmethod
    def _adapt(self, support: Batch) -> Tree:
        """Compute the state of a task from its support set, leaves (n, ...), which has been checked."""

    @abstractmethod
    def predict(self, state: Tree, inputs: Tree) -> Tree:
        """Predict for inputs (m, ...) under a task's state: (m, ...), logits (m, ways) for classification.

        A transductive learner weights the inputs by `kshot.query_weight.current_query_weight`; all are of weight 1
        unless `predict_query` calls it, as meta-training does.
        """

    @property
    def inner_settings(self) -> dict[str, Any]:
        """The settings of adaptation that may change in the course of training, by name; by default none."""
        return {}

    def set_inner(self, *_: Any, **settings: Any) -> None:
        """Set some of the `inner_settings`, with checked values; parameters keep their names and values."""
        assert not settings, f"{type(self).__name__} has no inner settings"

    def extend(self, state: Tree, support: Batch) -> Tree:
        """Add examples, of known and of new classes, to a state without access to the earlier examples.

        Args:
            state: state of a support set of C classes; it is not modified.
            support: further examples; targets one-hot (n, C' ≥ C), the new classes last.

        Returns:
            A new state, of C' classes; by default states cannot be extended, which raises ValueError.
        """
        raise ValueError(
            f"a state of {type(self).__name__} cannot be extended: adapt anew to all examples together, or use a "
            "learner that fits a head to features, such as protonet, plda or r2d2"
        )

    def forward(self, task: Task) -> Tensor:
        """The outer loss of one task, (); by default `query_loss`."""
        return query_loss(self, task)

    def _check_support(self, support: Batch) -> None:
        """Check shapes and dtypes of a support set, and the values of its targets where they can be read at no cost."""
        weight = support.weight
        if weight.ndim != 1 or not weight.is_floating_point():
            raise ValueError(
                f"weight of a support set must be floating point (n,), got {weight.dtype} {tuple(weight.shape)}; "
                "adapt takes one task, not a stack"
            )
        self.objective.check_targets(support.targets)
        for name, tree in (("inputs", support.inputs), ("targets", support.targets)):
            for leaf in tree_leaves(tree):
                if leaf.shape[:1] != weight.shape:
                    raise ValueError(
                        f"{name} of a support set must have one row for each of its {len(weight)} weights, "
                        f"got {tuple(leaf.shape)}"
                    )
        if has_values(support.weight):
            self.objective.check_values(support)


def query_loss(learner: Learner, task: Task) -> Tensor:
    r"""The query loss after adapting to the support set, $L_{\text{query}}(\text{adapt}(\text{support}))$, ()."""
    return learner.objective.loss(predict_query(learner, learner.adapt(task.support), task.query), task.query)


def predict_query(learner: Learner, state: Tree, query: Batch) -> Tree:
    """Predict for the inputs of a query set; its rows of weight 0 change no prediction for the others.

    `predict(state, query.inputs)` does not know the weights, which matters if the learner is transductive.
    """
    with query_weight(query.weight):
        return in_float32(learner.predict(state, query.inputs))
