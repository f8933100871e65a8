"""Modules that are not functions of their parameters and buffers: how they are found, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kshot.inner.call import Call
from kshot.inner.layer_errors import described
from kshot.inner.random_state import State, random_state, set_random_state
from kshot.inner.replica import NAME, Replica, unwrapped, version_of
from kshot.types import Params, Tree, tree_leaves

_WRAPPERS = {
    "torch.nn.parallel": "pass the module inside, its attribute .module; a meta-training step runs on one device",
    "torch.distributed": "pass the module inside; a meta-training step runs on one device",
    "torch._dynamo": "pass the module inside, its attribute ._orig_mod, and compile the step by mode='compiled'",
    "keras.src": "pass kshot.integrations.keras.as_module(model), whose parameters are the weights of the Keras model",
    "torch.jit": "pass the nn.Module from which it was scripted or traced",
}
"""Package of a class of modules: what to pass instead."""


def check_supported(module: nn.Module) -> None:
    """Raise ValueError, which names the layer, if a module is known not to be a function of its parameters."""
    for name, part in module.named_modules():
        layer = described(name, part)
        for package, remedy in _WRAPPERS.items():
            if any(base.__module__.startswith(package) for base in type(part).__mro__):
                raise ValueError(f"{layer} cannot be called with the weights of a task: {remedy}")
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            if part.max_norm is not None:
                raise ValueError(
                    f"{layer} has max_norm={part.max_norm}, by which each forward pass changes the weights in place: "
                    "leave it out, and normalise the rows in the forward of the model or by a parametrization"
                )
            if part.sparse and part.weight.requires_grad:
                raise ValueError(f"{layer} has sparse gradients, which have no second derivative: use sparse=False")
        for key, parameter in part.named_parameters(recurse=False):
            if is_lazy(parameter):
                raise ValueError(f"{layer} does not know its size yet: run the model on one batch first")
            if parameter._post_accumulate_grad_hooks:
                raise ValueError(
                    f"the parameter {key!r} of {layer} has a hook that runs after its gradient is accumulated, which "
                    "inner steps do not do: use register_hook, which sees each gradient"
                )
            if parameter.layout is not torch.strided or parameter.is_complex():
                raise ValueError(f"the parameter {key!r} of {layer} must be a dense tensor of real numbers")


def check_weights(module: nn.Module, changed: list[str], values: Params) -> None:
    """Raise RuntimeError if a forward pass has changed weights in place.

    Args:
        changed: names of weights that count more changes than before.
        values: the values before; a change by `.data`, which is not counted, is undone. Empty after the first call.
    """
    for name, value in values.items():
        parameter = module.get_parameter(name)
        if not torch.equal(parameter, value) and not bool(value.isnan().any()):
            changed.append(name)
            parameter.data.copy_(value)
    if changed:
        raise RuntimeError(
            f"the forward of this model changes its parameter {changed[0]!r} in place, so that it is not a function of "
            "its parameters: compute the changed weight from the parameter instead, as torch.nn.utils.parametrize "
            "does, and run initialisation by data before you make the learner"
        )


def check_repetition(module: nn.Module, output: Tree, given: Tree) -> None:
    """Raise RuntimeError if a part of a forward pass ran by `torch.utils.checkpoint(…, use_reentrant=True)`.

    Its gradient by the parameters is added to their `.grad` when all of the graph is run backward; an inner step, which
    asks for gradients, gets none of them.

    Args:
        module: what was called.
        output: what it returned.
        given: its parameters and inputs, which may have a graph of their own.
    """
    seen = {leaf.grad_fn for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
    nodes = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                f"{described('', module)} runs a part by torch.utils.checkpoint with use_reentrant=True, which gives "
                "inner steps no gradient by the parameters of that part: use use_reentrant=False (in transformers: "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False}))"
            )
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]


def changed_in_place(fresh: Tree) -> bool:
    """Whether a call has changed some of its inputs, which were fresh copies."""
    return any(version_of(leaf) > 0 for leaf in tree_leaves(fresh) if isinstance(leaf, Tensor))


def check_no_state(
    assigned: Sequence[tuple[nn.Module, str]],
    output: Tree,
    prepare: Callable[[], tuple[Replica, Call]],
    inputs: Tree,
    before: State,
) -> None:
    """Raise RuntimeError if a forward depends on attributes that the forward before has set.

    It is repeated with the same random numbers: with those attributes, which must not change the output, and without
    numbers and strings among them, which must not be missed.

    Args:
        assigned: the attributes that the first forward has set, with the parts that hold them.
        output: what it returned.
        prepare: () -> a new replica, and its call.
        before: the state of the random generators before the first forward.
    """
    after = random_state(inputs)

    def depends_on(assigned: Sequence[tuple[nn.Module, str]], numbers_only: bool) -> bool:
        replica, call = prepare()
        by_name = {part.__dict__[NAME]: part for part in replica.parts}
        for part, key in assigned:
            attributes, value = by_name[part.__dict__[NAME]].__dict__, part.__dict__[key]
            if not numbers_only:
                attributes[key] = value
            elif isinstance(value, bool | int | float | str):
                attributes.pop(key, None)
        set_random_state(before)
        try:
            return not _are_equal(call(replica.root, inputs), output)
        except AttributeError:  # it misses one that was taken away
            return True

    try:
        for numbers_only in (False, True):
            if depends_on(assigned, numbers_only):
                part, key = next((pair for pair in assigned if depends_on([pair], numbers_only)), assigned[0])
                raise RuntimeError(
                    f"{described(part.__dict__[NAME], part)} keeps something from call to call in its attribute "
                    f"{key!r}, which kshot cannot carry from step to step of a task: keep it in a buffer "
                    "(register_buffer), as a tensor"
                )
    finally:
        set_random_state(after)


def _are_equal(a: Tree, b: Tree) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    tensors = [(unwrapped(x)[-1], unwrapped(y)[-1]) for x, y in pairs if isinstance(x, Tensor)]
    return all(torch.equal(x, y) or bool(x.isnan().any()) for x, y in tensors)
