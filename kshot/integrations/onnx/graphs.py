"""ONNX graphs of a learner: of `predict`, with the state as inputs or as constants, and of `adapt`.

A graph is traced with symbolic sizes, and compared with the learner on tasks of other sizes than the traced one before
it is returned: a branch of the learner on a size, which a graph cannot have, would show there.

Shape legend: n support examples, m queries.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from kshot.inner.functional import assume_equal_weights
from kshot.integrations.onnx.operators import OPSET, TRANSLATIONS
from kshot.integrations.onnx.running import compute, difference, session
from kshot.learner import Learner, evaluation_mode
from kshot.training.checkpoint import flatten, unflatten
from kshot.types import Batch, Tree, tree_leaves, tree_map

TOLERANCE = 1e-4
"""Largest difference from the learner, relative to its largest output or to 1 if that is larger."""

LARGEST = 2**31
"""Bytes of weights from which an ONNX file cannot hold them."""

MANY = 40
"""Rows of the largest case that a graph is compared in, at least."""

MOST_OPERATIONS = 2000
"""Operations of PyTorch that are traced at most; some 2,000, with unrolled Newton steps, took over three minutes."""

Tensors = dict[str, Tensor]


class NotExportable(ValueError):
    """A learner without such a graph; the message says why."""


class Case(NamedTuple):
    """The inputs of a graph for one task, by name; `sizes` are those of its axes that may vary, by the axis's name."""

    inputs: Tensors
    sizes: Mapping[str, int]


def predict_model(learner: Learner, support: Batch, inputs: Tree, *, kind: str = "") -> onnx.ModelProto:
    """The graph of `predict`: the leaves of a state, `state/…` as in its file, and queries, `inputs`, to `prediction`.

    Args:
        learner: it is not changed.
        support: any support set: the graph has the form of its state, and not its values.
        inputs: any queries, leaves (m, ...).
        kind: what messages call the learner; by default the name of its class.

    Raises:
        NotExportable: the learner takes gradient steps in predicting, or PyTorch cannot export it.
    """
    spec, cases = tree_flatten_with_path(inputs)[1], []
    supports = _supports(learner, support)
    states = [flatten(_adapted(learner, each)) for each in supports]
    taken = {size for leaf in (*states[0].values(), supports[0].weight) for size in leaf.shape}
    for each, leaves, queries in zip(supports, states, _queries(inputs, taken)):
        state = {f"state/{name}": leaf for name, leaf in leaves.items()}
        cases.append(Case(state | _named("inputs", queries), _sizes(each) | {"queries": _rows(queries)}))

    def predict(named: Tensors) -> Tensors:
        leaves = {name.removeprefix("state/"): leaf for name, leaf in named.items() if name.startswith("state/")}
        queries = [leaf for name, leaf in named.items() if not name.startswith("state/")]
        return _named("prediction", learner.predict(unflatten(leaves), tree_unflatten(queries, spec)))

    return _export(_Call(learner, predict, f"predict of {kind or type(learner).__name__}"), cases, "queries")


def adapted_model(learner: Learner, state: Tree, inputs: Tree, *, kind: str = "") -> onnx.ModelProto:
    """The graph of `predict` with a state as constants: queries, `inputs`, to `prediction`; otherwise as above."""
    spec = tree_flatten_with_path(inputs)[1]
    cases = [Case(_named("inputs", queries), {"queries": _rows(queries)}) for queries in _queries(inputs)]

    def predict(named: Tensors) -> Tensors:
        return _named("prediction", learner.predict(state, tree_unflatten(list(named.values()), spec)))

    return _export(_Call(learner, predict, f"predict of {kind or type(learner).__name__}"), cases, "queries")


def adapt_model(learner: Learner, support: Batch, *, kind: str = "") -> onnx.ModelProto:
    """The graph of `adapt`: `inputs`, `targets` and `weight` of a support set to the leaves of its state, `state/…`.

    Args:
        learner: it is not changed.
        support: any support set, from whose form and number of rows the graph is traced.
        kind: what messages call the learner; by default the name of its class.

    Raises:
        NotExportable: the learner adapts by gradient steps, or PyTorch cannot export it.
    """
    spec = tree_flatten_with_path(support)[1]
    cases = [
        Case(_named("inputs", b.inputs) | _named("targets", b.targets) | {"weight": b.weight}, _sizes(b))
        for b in _supports(learner, support)
    ]

    def adapt(named: Tensors) -> Tensors:
        with assume_equal_weights(False):
            state = learner.adapt(tree_unflatten(list(named.values()), spec))
        return {f"state/{name}": leaf for name, leaf in flatten(state).items()}

    return _export(_Call(learner, adapt, f"adapt of {kind or type(learner).__name__}"), cases, "support")


class _Operations(TorchDispatchMode):
    """A context that counts the operations of PyTorch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **kwargs or {})


class _Call(nn.Module):
    """A function of named tensors as a module that torch.export takes; `what` is what messages call it."""

    def __init__(self, learner: Learner, function: Callable[[Tensors], Tensors], what: str) -> None:
        super().__init__()
        self.learner, self.function, self.what = learner, function, what
        self.names: list[str] = []

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(dict(zip(self.names, leaves))).values())


def _export(call: _Call, cases: list[Case], needed: str) -> onnx.ModelProto:
    """The graph of a call for any size of the axis `needed`, and of the others where it computes the same for them."""
    with evaluation_mode(call.learner):
        with _counted_gradients() as gradients:
            expected = [call.function(dict(case.inputs)) for case in cases]
        if gradients:
            raise NotExportable(
                f"{call.what} takes gradient steps, for which ONNX has no operators: let kshot "
                + ("adapt, and export what predicts from the state" if needed == "support" else "predict")
            )
        with _Operations() as operations:
            call.function(dict(cases[0].inputs))
        if operations.count > MOST_OPERATIONS:
            raise NotExportable(
                f"{call.what} takes {operations.count:,} operations, and above {MOST_OPERATIONS:,} PyTorch takes too "
                "long to trace them"
            )
        size = sum(each.numel() * each.element_size() for each in call.learner.state_dict().values())
        if size >= LARGEST:
            raise NotExportable(f"{call.what} has {size / 1e9:.1f} GB of weights, and a file of ONNX holds up to 2 GB")
        try:
            return _compared(call, cases, expected, needed)
        except NotExportable:
            ways = [case.sizes.get("ways") == cases[0].sizes.get("ways") for case in cases]
            if all(ways):
                raise
        same = [(case, outputs) for case, outputs, keep in zip(cases, expected, ways) if keep]  # a fixed number of ways
        return _compared(call, [case for case, _ in same], [outputs for _, outputs in same], needed)


def _compared(call: _Call, cases: list[Case], expected: list[Tensors], needed: str) -> onnx.ModelProto:
    """The graph of a call, traced in the first case; NotExportable if it gives something else in any."""
    try:
        model = _traced(call, cases, list(expected[0]))
    except Exception as error:
        raise NotExportable(f"{call.what} cannot be exported by PyTorch: {_reason(error)}") from error
    _name_axes(model, cases[0])
    if needed not in {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}:
        raise NotExportable(f"{call.what} cannot be exported: the graph would be for one size of {needed} alone")
    try:
        worst = _worst_difference(model, cases, expected)
    except Exception as error:
        raise NotExportable(f"the graph of {call.what} does not run on other sizes: {_reason(error)}") from error
    if not worst <= TOLERANCE:
        raise NotExportable(f"the graph of {call.what} differs from the learner by {worst:.2g}, more than {TOLERANCE}")
    onnx.helper.set_model_props(model, {"largest_difference": f"{worst:.1e}"})
    return model


def _traced(call: _Call, cases: list[Case], outputs: list[str]) -> onnx.ModelProto:
    """The graph of a call in the first case; axes that the others have of another size are of any size."""
    first, *others = [case.inputs for case in cases]
    call.names = list(first)
    axes = [
        {axis: Dim.AUTO for axis, size in enumerate(leaf.shape) if any(o[name].shape[axis] != size for o in others)}
        for name, leaf in first.items()
    ]
    with _quiet(), _symbolic_len(call.learner):
        program = torch.export.export(
            call,
            tuple(first.values()),
            dynamic_shapes=(tuple(axes),),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        exported = torch.onnx.export(
            program,
            verbose=False,
            input_names=call.names,
            output_names=outputs,
            custom_translation_table=TRANSLATIONS,
            opset_version=OPSET,
        )
    assert exported is not None
    return exported.model_proto


def _supports(learner: Learner, support: Batch) -> list[Batch]:
    """Support sets of several sizes: the one to trace, one with many rows, with two, and with a further class."""
    count = _distinct(len(support.weight), support)
    found = [_cycled(support, each) for each in (count, max(MANY, 3 * count), 2)]
    targets = support.targets
    if isinstance(targets, Tensor) and targets.ndim == 2:
        wider = found[0]._replace(targets=nn.functional.pad(found[0].targets, (0, 1)))
        with contextlib.suppress(Exception):  # a learner for a fixed number of classes, or of targets
            _adapted(learner, wider)
            found.append(wider)
    return found


def _queries(inputs: Tree, taken: Set[int] = frozenset()) -> list[Tree]:
    """Queries of several numbers; the first is to trace, and of none of the sizes that are taken."""
    count = _distinct(_rows(inputs), inputs, taken)
    return [_cycled(inputs, each) for each in (count, max(MANY, 3 * count), 1, count + 1)]


def _distinct(count: int, tree: Tree, taken: Set[int] = frozenset()) -> int:
    """A number of rows, at least `count`, that no other axis has: a trace takes axes of equal sizes for the same."""
    taken = {size for leaf in tree_leaves(tree) for size in leaf.shape[1:]} | taken
    return next(each for each in itertools.count(max(count, 4)) if each not in taken)


def _sizes(support: Batch) -> dict[str, int]:
    return {"support": len(support.weight), "ways": support.targets.shape[-1]}


def _cycled(tree: Any, count: int) -> Any:
    """`count` rows of a tree, taken again from the first one where there are not as many."""
    return tree_map(lambda leaf: leaf[torch.arange(count) % len(leaf)], tree)


def _adapted(learner: Learner, support: Batch) -> Tree:
    with evaluation_mode(learner):
        return learner.adapt(support)


def _rows(tree: Tree) -> int:
    return len(tree_leaves(tree)[0])


def _named(name: str, tree: Tree) -> Tensors:
    """The leaves of a tree by name: `name`, or `name/key` for each of several."""
    leaves, _ = tree_flatten_with_path(tree)
    return {"/".join([name, *(keystr((key,)).strip("[].'") for key in path)]): leaf for path, leaf in leaves}


@contextmanager
def _counted_gradients() -> Iterator[list[str]]:
    """A context that lists the calls of automatic differentiation."""
    calls: list[str] = []
    with contextlib.ExitStack() as stack:
        for place, name in (
            (torch.autograd, "grad"),
            (torch.autograd, "backward"),
            (torch.func, "grad"),
            (torch.func, "vjp"),
        ):
            original = getattr(place, name)

            def counted(*args: Any, original: Callable = original, name: str = name, **kwargs: Any) -> Any:
                calls.append(name)
                return original(*args, **kwargs)

            stack.enter_context(mock.patch.object(place, name, counted))
        yield calls


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without the warnings and reports of PyTorch about its own exporter."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def _symbolic_len(learner: Learner) -> Iterator[None]:
    """A context in which `len` of a tensor may be symbolic, in kshot and in the modules of a learner.

    Python makes a number of what `__len__` returns, which fixes the number of rows in a trace; `shape[0]` does not.
    """

    def symbolic(sized: Any) -> Any:
        return sized.shape[0] if isinstance(sized, Tensor) and sized.ndim else builtins.len(sized)

    own = {type(part).__module__ for part in learner.modules() if not type(part).__module__.startswith("torch.")}
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if (name.startswith("kshot.") or name in own) and "len" not in vars(module):
                stack.enter_context(mock.patch.object(module, "len", symbolic, create=True))
        yield


def _reason(error: BaseException) -> str:
    """The first line of an error that says why PyTorch could not export."""
    text = str(error.__cause__ or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error.__cause__ or error).__name__}: {lines[0][:200] if lines else ''}"


def _name_axes(model: onnx.ModelProto, case: Case) -> None:
    """Name the axes of any size, such as "queries", in place of PyTorch's s0."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            for name, size in case.sizes.items():
                if dim.dim_param and size == case.inputs[value.name].shape[axis]:
                    names.setdefault(dim.dim_param, name)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _worst_difference(model: onnx.ModelProto, cases: list[Case], expected: list[Tensors]) -> float:
    """The largest difference over the cases whose sizes the graph takes."""
    running, worst = session(model), 0.0
    shapes = {value.name: value.shape for value in running.get_inputs()}
    for case, outputs in zip(cases, expected):
        fits = all(
            isinstance(size, str) or size == given
            for name, shape in shapes.items()
            for size, given in zip(shape, case.inputs[name].shape)
        )
        if fits:
            worst = max(worst, difference(compute(running, case.inputs), outputs))
    return worst
