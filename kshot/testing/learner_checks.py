"""The contract of a learner as checks: what every learner promises to whatever trains, evaluates or serves it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from kshot.learner import Learner, predict_query
from kshot.testing.running import Check, is_close, is_equal, named_checks, require, run_checks
from kshot.testing.tasks import make_task
from kshot.training.checkpoint import load_state, save_state
from kshot.training.step import MetaGradient
from kshot.types import Batch, Task, Tree, stack

FOREIGN = 100
"""Difference between the seeds of a task and of the foreign task whose support is no help for it."""


def check_learner(
    factory: Callable[[int], Learner],
    *,
    exact: bool = True,
    steps: int = 0,
    inputs: tuple[int, ...] | None = None,
    make_task: Callable[..., Task] | None = None,
) -> None:
    """Check that a learner keeps the contract of `Learner`, on small synthetic tasks.

    Args:
        factory: number of ways -> a new learner; where a head is made for each task, the number may be ignored.
        exact: whether the meta-gradient is the exact derivative of the outer loss; False for a declared approximation,
            such as first-order MAML, which is then required to differ from the derivative.
        steps: steps of meta-training before the check that adapting helps, for learners that start from random weights.
        inputs: shape of one example; by default (1, 8, 8) for classification, (1,) for regression.
        make_task: (ways=, shots=, seed=, dtype=) -> Task, for inputs or targets of another form than those of
            `kshot.testing.make_task`.

    Raises:
        AssertionError: a check fails; the message has a sentence for each failure, headed by the name of the check.

    Example:
        >>> import kshot
        >>> from torch import nn
        >>> check_learner(lambda ways: kshot.protonet(nn.Linear(4, 3)), inputs=(4,))
    """
    checks = learner_checks(factory, exact=exact, steps=steps, inputs=inputs, make_task=make_task)
    run_checks("the learner", checks)


def learner_checks(
    factory: Callable[[int], Learner],
    *,
    exact: bool = True,
    steps: int = 0,
    inputs: tuple[int, ...] | None = None,
    make_task: Callable[..., Task] | None = None,
) -> Iterator[Check]:
    """The checks of `check_learner`, for example for `pytest.mark.parametrize`.

    Args:
        factory, exact, steps, inputs, make_task: as in `check_learner`.

    Yields:
        (name, check), the check a function without arguments that raises AssertionError.

    Example:
        >>> import kshot
        >>> from torch import nn
        >>> [name for name, _ in learner_checks(lambda ways: kshot.protonet(nn.Flatten()))]
        ['purity', 'padding', 'query order', 'support order', 'state file', ...]
    """
    contract = _Contract(factory, exact=exact, steps=steps, inputs=inputs, make_task=make_task)
    return named_checks(contract.checks())


class _Contract:
    def __init__(
        self,
        factory: Callable[[int], Learner],
        *,
        exact: bool,
        steps: int,
        inputs: tuple[int, ...] | None,
        make_task: Callable[..., Task] | None,
    ) -> None:
        self.factory, self.exact, self.steps, self.inputs, self.make_task = factory, exact, steps, inputs, make_task
        learner = factory(3)
        self.objective = learner.objective
        self.is_trained = any(parameter.requires_grad for parameter in learner.parameters())

    def checks(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "purity", self.purity
        yield "padding", self.padding
        yield "query order", self.query_order
        yield "support order", self.support_order
        yield "state file", self.state_file
        if self.is_trained:
            yield "engines", self.engines
            yield "meta-gradient", self.meta_gradient
        yield "ways and shots", self.ways_and_shots
        if self.objective.task_specific_classes:
            yield "absent classes", self.absent_classes
            yield "further classes", self.further_classes
        yield "adapting", self.adapting

    def task(self, ways: int = 3, shots: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
        if self.make_task is not None:
            return self.make_task(ways=ways, shots=shots, seed=seed, dtype=dtype)
        return make_task(self.objective, ways, shots, inputs=self.inputs, seed=seed, dtype=dtype)

    def purity(self) -> None:
        """`adapt` and `predict` change no weight, no buffer, no state, and none of their inputs."""
        learner, task = self.factory(3).train(), self.task()
        weights, examples = _copy(learner.state_dict()), _copy(tuple(task))
        state = learner.adapt(task.support)
        adapted = _copy(state)
        learner.predict(state, task.query.inputs)
        for name, tensor in learner.state_dict().items():
            require(torch.equal(tensor, weights[name]), f"adapt or predict changes the parameter or buffer {name!r}")
        require(is_equal(tuple(task), examples), "adapt or predict changes the tensors of the task in place")
        require(is_equal(state, adapted), "predict changes the state in place")

    def padding(self) -> None:
        """Rows of weight 0 have no effect, whatever they hold, in the support or in the query."""
        learner, task = self.factory(3), self.task()
        padded = Task(_padded(task.support), _padded(task.query))
        state, state_padded = learner.adapt(task.support), learner.adapt(padded.support)
        prediction, prediction_padded = (learner.predict(one, task.query.inputs) for one in (state, state_padded))
        require(
            is_close(prediction, prediction_padded),
            "support rows of weight 0 change the predictions; weight the rows in adapt",
        )
        among_padding = predict_query(learner, state, padded.query)
        require(
            is_close(prediction, _rows(among_padding, slice(len(task.query.weight)))),
            "query rows of weight 0 change the predictions for the others; weight the rows in predict by "
            "kshot.query_weight.current_query_weight",
        )
        loss, loss_padded = (
            learner.objective.loss(*pair) for pair in ((prediction, task.query), (among_padding, padded.query))
        )
        require(is_close(loss, loss_padded), "query rows of weight 0 change the query loss")
        require(is_close(learner(padded), learner(task)), "rows of weight 0 change the outer loss of forward")

    def query_order(self) -> None:
        """A prediction follows its query, and depends on the other queries only if declared."""
        learner, task = self.factory(3), self.task()
        state = learner.adapt(task.support)
        prediction = learner.predict(state, task.query.inputs)
        order = torch.randperm(len(task.query.weight))
        shuffled = learner.predict(state, _rows(task.query.inputs, order))
        follows = is_close(shuffled, _rows(prediction, order))
        if learner.causal_queries:
            require(not follows, "causal_queries is declared, and the order of the queries makes no difference")
        else:
            require(follows, "permuting the queries changes predictions; declare causal_queries if the order is meant")
        last = slice(-4, None)
        alone = is_close(learner.predict(state, _rows(task.query.inputs, last)), _rows(prediction, last))
        if learner.transductive:
            require(not alone, "transductive is declared, and predictions do not depend on the other queries")
        else:
            require(alone, "predictions depend on the other queries; declare transductive = True")

    def support_order(self) -> None:
        """The order of the support rows matters only if declared."""
        learner, task = self.factory(3), self.task()
        reversed_support = Batch(
            *(_rows(leaf, torch.arange(len(task.support.weight)).flip(0)) for leaf in task.support)
        )
        same = is_close(
            *(
                learner.predict(learner.adapt(support), task.query.inputs)
                for support in (reversed_support, task.support)
            )
        )
        if learner.ordered:
            require(not same, "ordered is declared, and the order of the support rows makes no difference")
        else:
            require(
                same, "the order of the support rows changes the predictions; declare ordered = True if it is meant"
            )

    def state_file(self) -> None:
        """A state that was saved and loaded predicts bitwise the same."""
        learner, task = self.factory(3), self.task()
        with torch.no_grad():
            state = learner.adapt(task.support)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "state.safetensors"
                save_state(path, state, {"note": "kept"})
                loaded, meta = load_state(path)
            require(meta == {"note": "kept"}, "the metadata of the state's file are not those that were saved")
            prediction, prediction_loaded = (learner.predict(one, task.query.inputs) for one in (state, loaded))
        require(
            is_equal(prediction, prediction_loaded),
            "a saved and loaded state predicts otherwise; keep all that is particular to the task in the state, as "
            "nested dicts of tensors",
        )

    def engines(self) -> None:
        """Loop, vmap and traced steps give the same loss and meta-gradient."""
        learner = self.factory(3).double()
        tasks = stack([self.task(seed=seed, dtype=torch.float64) for seed in range(3)])
        engines = {
            "loop": MetaGradient(learner, "loop"),
            "vmap": MetaGradient(learner, "vmap"),
            "one task traced": MetaGradient(learner, "traced", trace_one_task=True),
            "a stack traced": MetaGradient(learner, "traced", trace_one_task=False),
        }
        expected: list[Tensor] = []
        for engine, gradient in engines.items():
            learner.zero_grad()
            loss = gradient(tasks)
            require(learner.annealed or not gradient.choice, f"the engine {engine!r} was not taken: {gradient.choice}")
            gradients = [loss, *(p.grad.clone() for p in learner.parameters() if p.grad is not None)]
            expected = expected or gradients
            require(len(expected) > 1, "no parameter gets a gradient")
            require(
                is_close(gradients, expected, rtol=1e-8, atol=1e-10),
                f"the engine {engine!r} gives another loss or meta-gradient than the loop",
            )

    def meta_gradient(self) -> None:
        """The gradient of the outer loss is its derivative, or a declared approximation."""
        learner, task = self.factory(3).double(), self.task(dtype=torch.float64)
        parameters = dict(learner.named_parameters())

        def loss(*values: Tensor) -> Tensor:
            return torch.func.functional_call(learner, dict(zip(parameters, values)), (task,))

        values = tuple(parameters.values())
        if self.exact:
            require(
                torch.autograd.gradcheck(loss, values, fast_mode=True, raise_exception=False),
                "the gradient of the outer loss differs from finite differences; pass exact=False if it is a declared "
                "approximation",
            )
        else:
            require(
                not torch.isclose(*_slopes(loss, values), rtol=1e-4, atol=1e-7),
                "exact=False is declared, and the gradient is the exact derivative of the outer loss",
            )

    def ways_and_shots(self) -> None:
        """Any number of ways and shots; predictions are finite, one for each query."""
        for ways, shots in ((2, 1), (5, 3)):
            task = self.task(ways, shots)
            learner = self.factory(ways)
            prediction = learner.predict(learner.adapt(task.support), task.query.inputs)
            targets = task.query.targets
            for leaf in tree_leaves(prediction):
                shape = tuple(leaf.shape)
                setting = f"with {ways} ways and {shots} shots, predictions"
                if self.objective.task_specific_classes:
                    expected = tuple(targets.shape)
                    require(shape == expected, f"{setting} must be logits (queries, ways) {expected}, got {shape}")
                elif isinstance(targets, Tensor):
                    expected = tuple(targets.shape)[: 2 if self.objective.predicts == "masks" else None]
                    require(
                        shape[: len(expected)] == expected,
                        f"{setting} must begin with the shape {expected}, got {shape}",
                    )
                require(bool(torch.isfinite(leaf).all()), f"{setting} are not finite")

    def absent_classes(self) -> None:
        """A class without support examples gets no probability, and harms neither loss nor gradient."""
        learner, task = self.factory(5), _widened(self.task(), 5)
        probability = learner.predict(learner.adapt(task.support), task.query.inputs).softmax(-1)
        require(
            (probability[:, 3:] == 0).all(),
            "a class without support examples gets a probability above 0; mask its logits by objectives.only_present",
        )
        require(is_close(probability.sum(-1), torch.ones(len(probability))), "the probabilities do not sum to 1")
        loss = learner(task)
        require(
            torch.isfinite(loss),
            "the outer loss with absent classes is not finite; mask logits by objectives.only_present",
        )
        if self.is_trained:
            loss.backward()
        for name, parameter in learner.named_parameters():
            if parameter.grad is not None:
                finite = torch.isfinite(parameter.grad).all()
                require(finite, f"with absent classes, the gradient of {name!r} is not finite")

    def further_classes(self) -> None:
        """Where the head is made for the task, classes without examples change no prediction for the others."""
        shapes = [{name: t.shape for name, t in self.factory(ways).state_dict().items()} for ways in (3, 5)]
        if shapes[0] != shapes[1]:  # a head of fixed width
            return
        learner, task = self.factory(3), self.task()
        wide = learner.predict(learner.adapt(_widened(task, 5).support), task.query.inputs)
        narrow = learner.predict(learner.adapt(task.support), task.query.inputs)
        require(is_close(wide[:, :3], narrow), "classes without examples change the logits of the other classes")

    def adapting(self) -> None:
        """Adapting to a task's support beats adapting to the support of another task."""
        learner = self.factory(3)
        if self.steps:
            optimizer = torch.optim.Adam(learner.parameters(), 0.01)
            for seed in range(2 * FOREIGN, 2 * FOREIGN + self.steps):
                optimizer.zero_grad()
                learner(self.task(shots=4, seed=seed)).backward()
                optimizer.step()
        adapted = foreign = 0.0
        for seed in range(20):
            task, other = self.task(shots=4, seed=seed), self.task(shots=4, seed=seed + FOREIGN)
            adapted += _query_loss(learner, task.support, task.query)
            foreign += _query_loss(learner, other.support, task.query)
        require(
            adapted < foreign,
            f"the mean query loss after adapting is {adapted / 20:.4g}, and no better after adapting to another task, "
            f"{foreign / 20:.4g}; pass steps if the learner must be meta-trained first",
        )


def _query_loss(learner: Learner, support: Batch, query: Batch) -> float:
    with torch.no_grad():
        return float(learner.objective.loss(learner.predict(learner.adapt(support), query.inputs), query))


def _copy(tree: Tree) -> Tree:
    return tree_map(lambda leaf: leaf.detach().clone(), tree)


def _rows(tree: Tree, index: slice | Tensor) -> Tree:
    return tree_map(lambda leaf: leaf[index], tree)


def _padded(batch: Batch) -> Batch:
    """The batch with two more rows, of weight 0 and nonsense content: -1000 and 1000, or 7 where there are integers."""

    def padded(leaf: Tensor) -> Tensor:
        nonsense = torch.full_like(leaf[:2], 1000.0 if leaf.is_floating_point() else 7)
        if leaf.is_floating_point():
            nonsense[0].neg_()
        return torch.cat([leaf, nonsense])

    inputs, targets = tree_map(padded, tuple(batch[:2]))
    return Batch(inputs, targets, torch.nn.functional.pad(batch.weight, (0, 2)))


def _widened(task: Task, ways: int) -> Task:
    """The same task with further classes that have no examples, and a row of padding."""

    def wide(batch: Batch) -> Batch:
        inputs, targets = tree_map(lambda leaf: torch.cat([leaf, leaf[:1]]), tuple(batch[:2]))
        targets = torch.nn.functional.pad(targets, (0, ways - targets.shape[1]))
        return Batch(inputs, targets, torch.nn.functional.pad(batch.weight, (0, 1)))

    return Task(wide(task.support), wide(task.query))


def _slopes(function: Callable[..., Tensor], values: tuple[Tensor, ...], delta: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The derivative of a function along one random direction: by autograd, and by central differences."""
    directions = [torch.randn_like(value) for value in values]
    grads = torch.autograd.grad(function(*values), values, materialize_grads=True)
    above, below = (
        function(*(value + sign * delta * direction for value, direction in zip(values, directions))).detach()
        for sign in (1, -1)
    )
    slope = torch.stack([(grad * direction).sum() for grad, direction in zip(grads, directions)]).sum()
    return slope, (above - below) / (2 * delta)
