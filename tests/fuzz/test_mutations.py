"""The fuzz finds what it is for: each fault that kshot had, planted again, makes a check fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from fuzz import faults
from fuzz.checks import Outcome, check, check_mode, make_learner, make_task
from fuzz.expressions import ids, normal
from fuzz.grammar import Case, Rule, draw
from fuzz.test_threads import MODULES, count_wrong_answers, thread_case
from torch import Tensor, nn

import kshot
from kshot import Batch, Task
from kshot.training.replay import Gradient
from kshot.training.step import MetaGradient
from kshot.types import stack

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecated functions that models still use


def by_hand(name: str, shape: tuple[int, ...], init: str, forward: str, *tags: str, **options: Any) -> Case:
    """A case from the statements of a class; the head maps what forward leaves in x, flattened, to the outputs."""
    lines = [
        "class Drawn(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in init.split("; ")),
        "    def forward(self, x):",
        *(f"        {line}" for line in forward.split("; ")),
        "        return self.head(x.flatten(1))",
    ]
    inputs = options.pop("inputs", normal(*shape))
    return Case(name, "\n".join(lines), inputs, tags=frozenset(tags), **options)


CONV = "self.c = nn.Conv2d(1, 2, 3, padding=1); "
POOLED = "self.head = nn.Linear(18, 2)"
VECTOR = "self.a = nn.Linear(4, 4); self.b = nn.Linear(4, 4); self.head = nn.Linear(4, 2)"
CHECKPOINT = "x = torch.utils.checkpoint.checkpoint("

CASES = {
    "addition before pooling": by_hand(
        "addition", (1, 6, 6), CONV + POOLED, "x = self.c(x); y = F.leaky_relu(x); y += x; x = F.max_pool2d(y, 2)"
    ),
    "negative slope before pooling": by_hand(
        "slope", (1, 6, 6), CONV + POOLED, "x = F.max_pool2d(F.leaky_relu(self.c(x), -0.4), 2)"
    ),
    "in-place layer before pooling": by_hand(
        "layer", (1, 6, 6), CONV + POOLED, "y = F.leaky_relu(self.c(x), 0.1); y.mul_(-1); x = F.max_pool2d(y, 2)"
    ),
    "mask in a view": by_hand(
        "mask",
        (1, 6, 6),
        CONV + "self.head = nn.Linear(72, 2)",
        "x = self.c(x); mask = torch.zeros_like(x); index = torch.arange(7).expand(len(x), -1); "
        "mask.view(len(x), -1).scatter_(1, index, 1.0); x = x * mask",
    ),
    "one PReLU twice": by_hand(
        "prelu", (4,), VECTOR + "; p = nn.PReLU(); self.s = nn.Sequential(self.a, p, self.b, p)", "x = self.s(x)"
    ),
    "one Linear twice": by_hand(
        "linear", (4,), VECTOR + "; self.s = nn.Sequential(self.a, nn.Tanh(), self.a)", "x = self.s(x)"
    ),
    "one LayerNorm twice": by_hand(
        "norm", (4,), VECTOR + "; n = nn.LayerNorm(4); self.s = nn.Sequential(self.a, n, self.b, n)", "x = self.s(x)"
    ),
    "one buffer in two layers": by_hand(
        "buffer",
        (4,),
        VECTOR + "; t = torch.tensor(0.8); self.m = Multiply(t); self.n = Multiply(t)",
        "x = self.n(self.b(self.m(self.a(x))))",
    ),
    "one counting buffer in two layers": by_hand(
        "counting buffer",
        (4,),
        VECTOR + "; t = torch.tensor(0.8); self.m = CountingMultiply(t); self.n = Multiply(t)",
        "x = self.n(self.b(self.m(self.a(x))))",
        "stateful",
    ),
    "tied weights by their second name": by_hand(
        "tied", (4,), VECTOR + "; self.b.weight = self.a.weight", "x = self.b(self.a(x).tanh())", adaptable="b.*"
    ),
    "checkpoint": by_hand("checkpoint", (4,), VECTOR, CHECKPOINT + "self.b, self.a(x).tanh(), use_reentrant=False)"),
    "checkpoint of a closure": by_hand(
        "closure", (4,), VECTOR, CHECKPOINT + "lambda h: self.b(self.a(h).tanh()).sin(), x, use_reentrant=False)"
    ),
    "checkpoint of functions": by_hand(
        "functions",
        (4,),
        VECTOR,
        CHECKPOINT + "lambda h: h @ torch._weight_norm(self.a.weight, self.b.weight[:, :1]), x, use_reentrant=False)",
    ),
    "checkpoint with random slopes": by_hand(
        "slopes",
        (4,),
        VECTOR + "; self.s = nn.Sequential(self.a, nn.RReLU(0.1, 0.9))",
        CHECKPOINT + "self.s, x, use_reentrant=False)",
        "random",
    ),
    "reentrant checkpoint": by_hand(
        "reentrant",
        (4,),
        VECTOR,
        CHECKPOINT + "self.b, x.clone().requires_grad_(), use_reentrant=True)",
        may_refuse=True,
    ),
    "checkpoint with a norm": by_hand(
        "checkpoint norm",
        (4,),
        VECTOR + "; self.s = nn.Sequential(self.a, nn.BatchNorm1d(4), nn.Tanh())",
        CHECKPOINT + "self.s, x, use_reentrant=False)",
        batchnorm="query",
    ),
    "counter": by_hand("counter", (4,), VECTOR + "; self.n = Counter()", "x = self.n(self.a(x))", "stateful"),
    "assigned counter": by_hand(
        "assigned", (4,), VECTOR + "; self.n = AssignedCounter()", "x = self.n(self.a(x))", "stateful"
    ),
    "moving average": by_hand(
        "average", (4,), VECTOR + "; self.n = MovingAverage(4)", "x = self.n(self.a(x))", "stateful", "detached"
    ),
    "spectral norm": by_hand(
        "spectral", (4,), VECTOR + "; parametrizations.spectral_norm(self.a)", "x = self.a(x)", "stateful", "detached"
    ),
    "Python counter": by_hand(
        "calls", (4,), VECTOR + "; self.n = Calls()", "x = self.n(self.a(x))", "stateful", may_refuse=True
    ),
    "masked gradient": by_hand("masked", (4,), VECTOR + "; masked(self.a.weight)", "x = self.a(x).tanh()"),
    "forward hook": by_hand(
        "hook", (4,), VECTOR + "; hooked(self.a, forward=lambda m, args, output: self.b(output))", "x = self.a(x).sin()"
    ),
    "unused parameters with weight decay": by_hand(
        "unused",
        (4,),
        VECTOR,
        "x = self.a(x) * (1.0 if len(x) > 5 else self.b.weight.sum())",
        rule=Rule("sgd", 0.1, weight_decay=0.5),
    ),
    "unused parameters with Adam": by_hand(
        "unused adam",
        (4,),
        VECTOR,
        "x = self.a(x) * (1.0 if len(x) > 5 else self.b.weight.sum())",
        rule=Rule("adam", 0.03, weight_decay=0.5),
    ),
    "a norm that the query skips": by_hand(
        "skipped",
        (4,),
        VECTOR + "; self.n = Long(nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))",
        "x = self.n(x)",
    ),
    "norms in another order": by_hand(
        "order",
        (4,),
        VECTOR + "; self.m = nn.BatchNorm1d(4); self.n = nn.BatchNorm1d(4)",
        "first, second = (self.m, self.n) if len(x) > 5 else (self.n, self.m); x = first(x) + second(self.a(x))",
    ),
    "weight norm": by_hand(
        "weight norm", (4,), VECTOR + "; parametrizations.weight_norm(self.a)", "x = self.a(x).sin()"
    ),
    "padding row": by_hand(
        "padding",
        (),
        "self.e = nn.Embedding(7, 4, padding_idx=1); self.head = nn.Linear(20, 2)",
        "x = self.e(x)",
        inputs=ids(5),
    ),
    "a parameter in a list": by_hand(
        "list", (4,), VECTOR + "; self.held = [self.a.weight]", "x = F.linear(x, self.held[0]).tanh()", may_refuse=True
    ),
}


class Fault(NamedTuple):
    """A fault: how to plant it, the cases by hand that it breaks, productions of which some drawn module breaks."""

    plant: Callable[[pytest.MonkeyPatch], None]
    cases: tuple[str, ...]
    productions: tuple[str, ...] = ()
    inference: bool = False


FUNCTIONAL = faults.plant_functional_call
FAULTS = {
    "1 no graph": Fault(faults.plant_zeros_for_missing_gradients, ("forward hook",), ("one_layer",), inference=True),
    "1 weight decay of unused parameters": Fault(
        faults.plant_zeros_for_missing_gradients,
        ("unused parameters with weight decay", "unused parameters with Adam"),
        ("unused",),
    ),
    "2 pooling": Fault(
        faults.plant_reordered_pooling,
        ("addition before pooling", "negative slope before pooling", "in-place layer before pooling"),
        ("pooled_activation",),
    ),
    "2 views": Fault(faults.plant_copied_views, ("mask in a view",), ("scattered_mask",)),
    "3 shared modules": Fault(
        FUNCTIONAL, ("one PReLU twice", "one Linear twice", "one LayerNorm twice"), ("shared_twice",)
    ),
    "3 shared buffers": Fault(FUNCTIONAL, ("one counting buffer in two layers",), ("shared_buffer",)),
    "3 tied weights": Fault(faults.plant_first_names, ("tied weights by their second name",)),
    "5 checkpoints": Fault(
        FUNCTIONAL, ("checkpoint", "checkpoint of a closure", "checkpoint with a norm"), ("checkpointed",)
    ),
    "5 functions in checkpoints": Fault(
        faults.plant_lost_repetition, ("checkpoint of functions",), ("checkpointed", "random_numbers")
    ),
    "5 random slopes in checkpoints": Fault(faults.plant_slopes_without_values, (), ("random_numbers",)),
    "5 reentrant checkpoints": Fault(faults.plant_reentrant_checkpoints, ("reentrant checkpoint",)),
    "6 buffers": Fault(
        faults.plant_fixed_buffers,
        ("counter", "assigned counter", "moving average", "spectral norm"),
        ("learning_buffer",),
    ),
    "6 Python attributes": Fault(faults.plant_lost_attributes, ("Python counter",), ("python_attribute",)),
    "hooks": Fault(faults.plant_lost_gradient_hooks, ("masked gradient",), ("masked_gradient",)),
    "statistics by call number": Fault(
        faults.plant_statistics_by_number, ("a norm that the query skips", "norms in another order"), ("skipped",)
    ),
    "weight norm": Fault(faults.plant_fused_weight_norm, ("weight norm",), ("weight_norm",)),
    "padding": Fault(faults.plant_wrong_embedding, ("padding row",), ("embedding padding",)),
}


@pytest.mark.parametrize("name", ["forward hook", "one LayerNorm twice"])
def test_inference_mode(name):
    outcome = check(CASES[name], (), inference=True)
    assert not outcome.failures, str(outcome)


@pytest.mark.parametrize("name", CASES)
def test_without_a_fault_the_case_passes(name):
    outcome = check(CASES[name], inference=False)
    assert not outcome.failures, str(outcome)
    loop = [sentence for what, sentence in outcome.refusals if what != "vmap"]
    assert CASES[name].may_refuse or not loop


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, monkeypatch):
    fault = FAULTS[name]
    fault.plant(monkeypatch)
    for case in fault.cases:
        assert check(CASES[case], (), inference=fault.inference).failures, case
    for production in fault.productions:
        assert any(check(case, (), inference=fault.inference).failures for case in drawn_with(production)), production


def drawn_with(tag: str, count: int = 12) -> Iterator[Case]:
    """The first drawn cases with a tag."""
    return itertools.islice((case for case in map(draw, range(500)) if tag in case.tags), count)


def test_exchanged_weights_are_found(monkeypatch):
    faults.plant_exchanged_weights(monkeypatch)

    def is_found(name: str) -> bool:
        try:
            return count_wrong_answers(thread_case(name), 50) > 0
        except AssertionError:  # the module is not as it was
            return True

    assert any(map(is_found, MODULES))


# A loss that does not use the parameters that it is given.


def unroll_without_parameters() -> dict[str, Tensor]:
    """Unroll a loss that calls the module with its own parameters."""
    module, x, y = nn.Linear(2, 1), torch.ones(3, 2), torch.zeros(3, 1)
    params = dict(module.named_parameters())
    return kshot.inner.unroll(lambda _: (module(x) - y).square().mean(), params, kshot.inner.SGD(0.1), steps=2)


def test_a_loss_that_ignores_its_parameters_is_refused():
    with pytest.raises((RuntimeError, ValueError), match="parameters"):
        unroll_without_parameters()


def test_an_accepted_loss_without_parameters_is_found(monkeypatch):
    faults.plant_zeros_for_missing_gradients(monkeypatch)
    with pytest.raises(pytest.fail.Exception):
        test_a_loss_that_ignores_its_parameters_is_refused()


# Buffers that the outer step keeps.


@pytest.mark.parametrize("name", ["counter", "assigned counter", "moving average", "spectral norm"])
def test_the_outer_step_keeps_what_buffers_learn(name):
    module = CASES[name].build()
    learner, before = make_learner(CASES[name], module), {key: b.clone() for key, b in module.named_buffers()}
    gradient = MetaGradient(learner, "loop")
    gradient(stack([make_task(CASES[name])]))
    gradient.update_buffers()
    assert any(not torch.equal(buffer, before[key]) for key, buffer in module.named_buffers())


# Recorded steps, when Python attributes change between steps.


class Attributes(nn.Module):
    """A module whose Python attributes change what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.options = 1.0, {"shift": 0.0}
        self.body, self.dropped, self.head = nn.Linear(4, 4), nn.Dropout(0.0), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(self.dropped(self.body(x)) * self.scale + self.options["shift"])
        return self.head(x if self.training else 2 * x)


def set_scale(module: Attributes, step: int) -> None:
    """A number of the module changes."""
    module.scale = 1.0 + 0.1 * step


def set_training(module: Attributes, step: int) -> None:
    """The mode changes."""
    module.train(step % 2 == 0)


def set_options(module: Attributes, step: int) -> None:
    """What a dict holds changes, which no key can hold."""
    module.options["shift"] = 0.1 * step


CHANGES = {set_scale: 0, set_training: 0, set_options: 10}
"""What changes between steps: number of the first step from which each gradient must be right."""


def wrong_recorded_steps(change: Callable[[Attributes, int], None], steps: int = 14) -> list[int]:
    """Numbers of the steps whose gradient in mode "traced" is not that of a plain step."""
    case = Case("attributes", "", normal(4), made=Attributes, steps=1)
    tasks, modules = stack([make_task(case), make_task(case, 1)]), [case.build(), case.build()]
    gradients = [MetaGradient(make_learner(case, part), mode) for part, mode in zip(modules, ("loop", "traced"))]
    wrong = []
    for step in range(steps):
        for module, gradient in zip(modules, gradients):
            module.zero_grad()
            change(module, step)
            gradient(tasks)
        pairs = zip(modules[0].parameters(), modules[1].parameters())
        if not all(torch.allclose(one.grad, other.grad, rtol=1e-8, atol=1e-10) for one, other in pairs):
            wrong.append(step)
    return wrong


@pytest.mark.parametrize("change", CHANGES)
def test_recorded_steps_follow_attributes(change):
    assert [step for step in wrong_recorded_steps(change) if step >= CHANGES[change]] == []


def test_blind_recording_is_found(monkeypatch):
    faults.plant_blind_recording(monkeypatch)
    for change, first in CHANGES.items():
        assert [step for step in wrong_recorded_steps(change) if step >= first], change


# Features far from the origin.


def misplaced(offset: float) -> float:
    """The share of queries of which `protonet` and the nearest centroid in float64 differ, at an offset, in float32."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=generator)
    labels = torch.arange(60) % 3
    rows = centres[labels] + 0.5 * torch.randn(60, 8, generator=generator) + offset  # rounded to float32 here
    batch = Batch.of(rows, labels, ways=3)
    task = Task(batch.rows(slice(0, 30)), batch.rows(slice(30, None)))
    learner = kshot.protonet(nn.Identity())
    found = learner.predict(learner.adapt(task.support), task.query.inputs).argmax(1)
    exact = rows.double()
    means = torch.stack([exact[:30][labels[:30] == label].mean(0) for label in range(3)])
    expected = (exact[30:, None] - means).square().sum(2).argmin(1)
    return float((found != expected).double().mean())


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_distances_far_from_the_origin(offset):
    assert misplaced(offset) == 0.0


def test_uncentred_distances_are_found(monkeypatch):
    faults.plant_uncentred_distances(monkeypatch)
    assert misplaced(1e5) > 0.1


def test_a_mode_that_differs_is_found(monkeypatch):
    def scaled(self: MetaGradient, tasks: Task) -> Gradient:
        found = original(self, tasks)
        return found._replace(grads={name: 1.0001 * grad for name, grad in found.grads.items()})

    original = MetaGradient._vmap
    monkeypatch.setattr(MetaGradient, "_vmap", scaled)
    outcome = Outcome(CASES["forward hook"])
    check_mode(outcome.case, outcome, "vmap")
    assert [kind for kind, _ in outcome.failures] == ["vmap"]
