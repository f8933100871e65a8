"""kshot against the oracle, for one case: predictions, gradients in every mode, and that nothing of the module changes.

`python -m fuzz.checks FIRST LAST [MODE …]` prints what fails for the seeds from FIRST to before LAST.
"""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from fuzz import oracle
from fuzz.grammar import Case, draw
from torch import Tensor, nn

import kshot
from kshot import Batch, Task, objectives
from kshot.inner import SGD, Adam, Unrolled
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.training.step import MetaGradient
from kshot.types import stack

STEP, SMALL_STEP = 1e-5, 3e-8  # of finite differences; the small one, with more rounding, for kinks within the other
DIRECTIONS = 3  # random directions before the derivative by autograd decides


class Failure(NamedTuple):
    """What is wrong: "adaptation", "gradient", a mode, "purity", "attributes", "inference mode", "error"."""

    kind: str
    text: str


@dataclass
class Outcome:
    """What a check found.

    Attributes:
        failures: wrong numbers, changed modules, and errors that name no layer.
        refusals: (what was refused, sentence), for errors that name a layer; "gradient" includes all modes.
        fallbacks: sentences of modes that chose another engine.
    """

    case: Case
    failures: list[Failure] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*(f"{kind}: {text}" for kind, text in self.failures), str(self.case)])


class Refused(Exception):
    """kshot refused; the outcome has the sentence."""


def check(case: Case, modes: Sequence[str] = ("vmap",), *, inference: bool | None = None) -> Outcome:
    """Compare kshot with the oracle; `modes` are compared with the loop, which is compared with the oracle.

    Adaptation inside inference mode is checked for every fourth seed, unless `inference` says so.
    """
    outcome = Outcome(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated functions that models still use
        try:
            _check_adaptation(case, outcome, case.number % 4 == 0 if inference is None else inference)
            reference = _check_gradient(case, outcome)
        except Refused:
            return outcome
        if reference is not None:
            for mode in modes:
                try:
                    check_mode(case, outcome, mode)
                except Refused:
                    continue
    return outcome


def make_learner(case: Case, module: nn.Module) -> GradientLearner:
    """The learner of a case."""
    rule, objective = case.rule, objectives.mse if case.objective == "mse" else objectives.classification
    if rule.name == "sgd" and not (rule.momentum or rule.weight_decay):
        options = {"objective": objective, "batchnorm": case.batchnorm, "adaptable": case.adaptable}
        return kshot.maml(module, inner_lr=rule.lr, steps=case.steps, **options)
    if rule.name == "sgd":
        update: Any = SGD(rule.lr, momentum=rule.momentum, weight_decay=rule.weight_decay)
    else:
        update = Adam(rule.lr, eps=rule.eps, weight_decay=rule.weight_decay)
    solver = Unrolled(update, case.steps)
    return GradientLearner(module, objective, solver, batchnorm=case.batchnorm, adaptable=case.adaptable)


@contextmanager
def random_numbers(case: Case) -> Iterator[None]:
    """A context with the random numbers of a case."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.number)
        yield


def make_task(case: Case, task: int = 0) -> Task:
    """A task of a case, all rows of weight 1."""
    support, support_targets, query, query_targets = case.data(task)
    ones = torch.ones(1, dtype=torch.float64)
    return Task(
        Batch(support, support_targets, ones.expand(len(support_targets)).clone()),
        Batch(query, query_targets, ones.expand(len(query_targets)).clone()),
    )


def _attempt(outcome: Outcome, what: str, module: nn.Module, function: Callable[[], Any]) -> Any:
    """Call a function; an error is a refusal if it names a layer, else a failure."""
    try:
        return function()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, RuntimeError | ValueError | NotImplementedError) and names_a_layer(str(error), module):
            outcome.refusals.append((what, text))
        else:
            outcome.failures.append(Failure("error", f"in {what}: {text}"))
        raise Refused from error


def names_a_layer(message: str, module: nn.Module) -> bool:
    """Whether a message has the name of a registered layer, in quotes, or the class of one."""
    classes = {type(part).__name__ for part in module.modules()}
    names = {name for name, _ in module.named_modules(remove_duplicate=False) if name}
    quoted = set(re.findall(r"'(?:model\.)?([\w.]+)'", message))
    return bool(names & quoted) or any(re.search(rf"\b{name}\b", message) for name in classes)


def _check_adaptation(case: Case, outcome: Outcome, inference: bool) -> None:
    task, module = make_task(case), case.build()
    expected = oracle.prediction(case)
    before = Snapshot(module)
    learner = _attempt(outcome, "adaptation", module, lambda: make_learner(case, module))

    def predict() -> Tensor:
        with random_numbers(case):
            state = learner.adapt(task.support)
            numbers = torch.get_rng_state()
            learner.predict(state, task.query.inputs)  # which changes neither the module nor the state
            torch.set_rng_state(numbers)
            return learner.predict(state, task.query.inputs).detach()

    found = _attempt(outcome, "adaptation", module, predict)
    if not expected.isfinite().all():  # it diverges
        raise Refused
    _compare(outcome, "adaptation", found, expected)
    outcome.failures += before.differences(module)
    if inference and not outcome.failures:
        try:
            with torch.inference_mode():
                found = predict()
            _compare(outcome, "inference mode", found, expected)
        except (RuntimeError, ValueError) as error:  # it may be refused
            if not re.search(r"adapt|learner", str(error)) or "inference" not in str(error).lower():
                outcome.failures.append(Failure("inference mode", f"{type(error).__name__}: {error}"))


def _compare(outcome: Outcome, kind: str, found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    size = float(expected.abs().max())
    if not error <= 1e-10 + 1e-9 * size and not error <= min(1e-6 * size, 100 * oracle.rounding(outcome.case)):
        outcome.failures.append(Failure(kind, f"off by {error:.3g} of {float(expected.abs().max()):.3g}"))


def _check_gradient(case: Case, outcome: Outcome) -> dict[str, Tensor] | None:
    """The gradient of one task by the loop against central differences, or the derivative by autograd."""
    module = case.build()
    grads = _attempt(outcome, "gradient", module, lambda: _gradients(case, module, "loop", 1)[0])
    size = _norm(grads)
    if "detached" in case.tags:
        if "held_parameters" in case.tags:  # which the steps written out cannot replace
            return grads
        _compare_grads(outcome, "gradient", grads, oracle.gradient(case))
        return grads
    generator = torch.Generator().manual_seed(case.number)
    for _ in range(DIRECTIONS):
        direction = oracle.random_direction(case, generator)
        found = sum(float((grads[name] * value).sum()) for name, value in direction.items())
        expected, error = oracle.directional(case, direction, STEP, found, 1e-6 * max(size, 0.01))
        if abs(found - expected) <= 1e-6 * max(size, 0.01):
            return grads
        if error <= 1e-6 * max(size, 0.01):  # two step sizes agree: there is no kink, or the point is at one
            close, _ = oracle.directional(case, direction, SMALL_STEP, found, 1e-6 * max(size, 0.01))
            if abs(found - close) <= 1e-6 * max(size, 0.01):
                return grads
            text = f"derivative along a random direction {found:.9g}, by differences {expected:.9g} ± {error:.1g}"
            outcome.failures.append(Failure("gradient", text))
            return None
    _compare_grads(outcome, "gradient", grads, oracle.gradient(case))
    return grads


def _norm(grads: dict[str, Tensor]) -> float:
    return float(torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt())


def _compare_grads(
    outcome: Outcome, kind: str, found: dict[str, Tensor], expected: dict[str, Tensor], num_tasks: int = 1
) -> None:
    size = max(_norm({name: grad.nan_to_num(0.0) for name, grad in expected.items()}), 1e-3)
    errors = {name: _largest_difference(found[name], grad) for name, grad in expected.items()}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    if not errors[worst] <= 1e-8 * size and not _is_rounding(outcome.case, errors[worst], num_tasks):
        outcome.failures.append(Failure(kind, f"gradient of {worst} off by {errors[worst]:.3g}, norm {size:.3g}"))


def _largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference; NaN has to be where it is expected, as PyTorch's derivative of `std` of equal values."""
    differences = (found - expected).abs()
    return float(torch.where(found.isnan() & expected.isnan(), 0.0, differences).max())


def _is_rounding(case: Case, error: float, num_tasks: int) -> bool:
    """Whether an error is one of rounding: training can be chaotic, so that the last bit of a weight decides."""
    return "held_parameters" not in case.tags and error <= 100 * oracle.rounding_of_gradient(case, num_tasks)


def _gradients(
    case: Case, module: nn.Module, mode: str, num_tasks: int, steps: int = 1, choice: list[str] | None = None
) -> list[dict[str, Tensor]]:
    """The gradients of the module's parameters at each of some steps on the same tasks, without updates."""
    learner = make_learner(case, module)
    tasks = stack([make_task(case, task) for task in range(num_tasks)])
    gradient, found = MetaGradient(learner, mode), []  # type: ignore[arg-type]
    for _ in range(steps):
        learner.zero_grad()
        with random_numbers(case):
            gradient(tasks)
        found.append(
            {
                name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
                for name, parameter in oracle.trainable(module).items()
            }
        )
    if choice is not None and gradient.choice:
        choice.append(gradient.choice)
    return found


def check_mode(case: Case, outcome: Outcome, mode: str) -> None:
    """Compare gradients, and what buffers learn, with the loop; a recording mode at two steps: the second replays."""
    steps = 1 if mode == "vmap" else 2
    plain, module = case.build(), case.build()
    expected = _attempt(outcome, "loop", plain, lambda: _gradients(case, plain, "loop", 2, steps))
    found = _attempt(outcome, mode, module, lambda: _gradients(case, module, mode, 2, steps, outcome.fallbacks))
    if not all(math.isfinite(_norm(grads)) for grads in expected):
        return _check_divergence(case, outcome)
    if "random" in case.tags:  # tasks of a batch draw other numbers
        if not all(math.isfinite(_norm(grads)) for grads in found):
            outcome.failures.append(Failure(mode, "a gradient is not finite"))
        return None
    for first, second in zip(found, expected):
        _compare_grads(outcome, mode, first, second, num_tasks=2)
    learned = dict(plain.named_buffers())
    for name, buffer in module.named_buffers():
        if not torch.allclose(buffer.detach(), learned[name].detach(), rtol=1e-8, atol=1e-10):
            outcome.failures.append(Failure(mode, f"the buffer {name} is not as after the loop"))
    return None


def _check_divergence(case: Case, outcome: Outcome) -> None:
    """Of two tasks whose gradient by the loop is not finite, that of plain PyTorch has to be so too."""
    if all(math.isfinite(_norm(oracle.gradient(case, task))) for task in range(2)):
        outcome.failures.append(Failure("loop", "the gradient of two tasks is not finite, by the oracle it is"))


class Snapshot:
    """What a module is: bits of weights and buffers, identities, versions, and Python attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = {
            (id(part), key): (tensor, tensor._version, tensor.detach().clone())
            for part in module.modules()
            for key, tensor in (part._parameters | part._buffers).items()
            if tensor is not None
        }
        self.attributes = _attributes(module)

    def differences(self, module: nn.Module) -> list[Failure]:
        """What is not as it was."""
        failures = []
        for name, part in module.named_modules():
            for key, tensor in (part._parameters | part._buffers).items():
                before = self.tensors.get((id(part), key))
                if tensor is None or before is None:
                    if (tensor is None) != (before is None):
                        failures.append(Failure("purity", f"{name}.{key} was set or deleted"))
                elif tensor is not before[0]:
                    failures.append(Failure("purity", f"{name}.{key} is another tensor"))
                elif not torch.equal(tensor, before[2]):
                    failures.append(Failure("purity", f"{name}.{key} has other values"))
                elif tensor._version != before[1]:
                    failures.append(Failure("purity", f"{name}.{key} was written to"))
        after = _attributes(module)
        changed = sorted({key for key in self.attributes | after if self.attributes.get(key) != after.get(key)})
        return failures + [
            Failure("attributes", f"{key} was {self.attributes.get(key)}, is {after.get(key)}") for key in changed
        ]


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Python attributes of all layers: values of simple ones, lengths of containers, identities of others."""
    tables = {"_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs", "_backward_hooks"}
    found = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key in tables:
                continue
            if isinstance(value, bool | int | float | str | tuple | None):
                found[f"{name}.{key}"] = repr(value) if not isinstance(value, tuple) else len(value)
            else:
                found[f"{name}.{key}"] = (id(value), len(value)) if isinstance(value, list | dict | set) else id(value)
        for index, weight in enumerate(getattr(part, "_flat_weights", [])):
            found[f"{name}._flat_weights[{index}]"] = id(weight)
    return found


def main(first: str, last: str, *modes: str) -> None:
    """Check a range of seeds."""
    torch.set_num_threads(1)
    for seed in range(int(first), int(last)):
        outcome = check(draw(seed), modes or ("vmap",))
        for kind, text in outcome.failures:
            print(f"{seed} {kind}: {text[:300]} | {', '.join(sorted(outcome.case.tags))}", flush=True)
        for what, text in outcome.refusals:
            print(f"{seed} refused {what}: {text[:200]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
