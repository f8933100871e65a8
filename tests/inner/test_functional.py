"""A module under other weights: shared parts, closures, threads, recomputation, and what is refused."""

from __future__ import annotations

import copy
import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import kshot
from kshot import Batch, Task, objectives
from kshot.inner import SGD
from kshot.inner.functional import Function
from kshot.inner.solvers import Unrolled
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.training.step import meta_gradient
from kshot.types import stack

RATE, STEPS = 0.1, 3


def examples(*shape: int, seed: int = 0) -> Task:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(9, *(shape or (3,)), generator=generator, dtype=torch.float64)
    targets = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    batch = Batch(inputs, targets, torch.ones(9, dtype=torch.float64))
    return Task(batch.rows(slice(5)), batch.rows(slice(5, None)))


def learner_of(model: nn.Module, **rule: float) -> GradientLearner:
    return GradientLearner(model, objectives.mse, Unrolled(SGD(RATE, **rule), STEPS), batchnorm="query")


def train(trained: nn.Module, task: Task, **rule: float) -> nn.Module:
    """The inner steps by `torch.optim`, in place."""
    optimizer = torch.optim.SGD(trained.parameters(), RATE, **rule)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(trained(task.support.inputs), task.support.targets).backward()
        optimizer.step()
    return trained


def shared_activation() -> nn.Module:
    shared = nn.PReLU()
    return nn.Sequential(nn.Linear(3, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 2))


def shared_layer() -> nn.Module:
    linear, norm = nn.Linear(4, 4), nn.LayerNorm(4)
    return nn.Sequential(nn.Linear(3, 4), linear, norm, nn.Tanh(), linear, norm, nn.Linear(4, 2))


class SharedBuffer(nn.Module):
    """Two parts that register one buffer, which the first one changes."""

    class Part(nn.Module):
        def __init__(self, total: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("total", total)

    def __init__(self) -> None:
        super().__init__()
        total = torch.zeros(3, dtype=torch.float64)
        self.a, self.b, self.out = self.Part(total), self.Part(total), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a.total += x.mean(0)
        return self.out(x - self.b.total).tanh()


class Reached(nn.Module):
    """Reaches its layers through a list, a dict, a bound method, a partial and a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.out = (nn.Linear(3, 3) for _ in range(5))
        self.listed, self.named, self.method = [self.a, (self.b,)], {"c": self.c}, self.last
        self.partial = functools.partial(self.last, scale=2.0)
        self.closure = lambda x: self.d(x).tanh()
        self.out = nn.Linear(3, 2)

    def last(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * self.out(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.closure(self.named["c"](self.listed[1][0](self.listed[0](x)).tanh()))
        return self.method(x) + self.partial(x)


class Hooked(nn.Module):
    """Hooks that change an input and an output; one of them uses another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.a.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        self.a.register_forward_hook(lambda module, args, output: output + self.b(args[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.a(x).tanh())


class Masked(nn.Module):
    """Hooks of parameters that mask the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.a.weight.register_hook(lambda grad: grad * torch.tensor([[1.0], [0.0], [0.5], [2.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.a(x).tanh())


class Recomputed(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if norm else nn.Identity(), nn.Tanh())
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(checkpoint(self.block, x, use_reentrant=False))


class Counting(nn.Module):
    """Counts its calls in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.out = 0, nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.out(x / self.calls).tanh()


class InPlaceAfterActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(self.conv(x))
        y += x
        return self.out(F.max_pool2d(y, 2).flatten(1))


class MaskedByScatter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 3, 3), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x)
        mask = torch.zeros_like(h)
        mask.view(len(h), -1).scatter_(1, h.flatten(1).topk(4).indices, 1.0)
        return self.out((h * mask).flatten(1))


MODULES = {
    "shared activation": shared_activation,
    "shared layer": shared_layer,
    "shared buffer": SharedBuffer,
    "reached through objects": Reached,
    "hooks": Hooked,
    "hooks of parameters": Masked,
    "checkpoint": lambda: Recomputed(False),
    "checkpoint around BatchNorm": lambda: Recomputed(True),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)
    ),
    "old weight norm": lambda: nn.Sequential(old_weight_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2)),
}
IMAGES = {
    "in place after the activation": InPlaceAfterActivation,
    "mask by scatter": MaskedByScatter,
    "pooling after a negative slope": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.LeakyReLU(-0.5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)
    ),
    "activation of its input in place": lambda: nn.Sequential(
        Doubled(nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(1))),
        nn.Conv2d(2, 1, 4),
        nn.Flatten(),
        nn.Linear(1, 2),
    ),
}


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(layer)


class Doubled(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        return self.block(x) + x


@pytest.mark.parametrize("name", MODULES | IMAGES)
@pytest.mark.parametrize("rule", [{}, {"momentum": 0.5, "weight_decay": 0.1}], ids=["plain", "with decay"])
def test_a_module_adapts_as_another_of_its_kind_trains(name, rule):
    build, task = (MODULES | IMAGES)[name], examples(*((2, 4, 4) if name in IMAGES else (3,)))
    torch.manual_seed(0)
    model, trained = build().double(), build().double()
    trained.load_state_dict(model.state_dict())
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    learner = learner_of(model, **rule)
    found = learner.predict(learner.adapt(task.support), task.query.inputs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    expected = train(trained, task, **rule)(task.query.inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_pattern_of_tied_weights_goes_by_any_of_their_names():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    names = lambda pattern: list(kshot.inner.adaptable_params(model, pattern))  # noqa: E731
    assert names("b.*") == ["a.weight", "b.bias"]
    assert names(("*", "!b.weight")) == ["a.bias", "b.bias"]


@pytest.mark.parametrize("build", [Reached, lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))])
def test_threads_do_not_disturb_each_other(build):
    torch.manual_seed(0)
    model = build().double()
    learner, tasks = learner_of(model), [examples(seed=seed) for seed in range(8)]
    before = copy.deepcopy(model.state_dict())

    def answer(number: int) -> torch.Tensor:
        task = tasks[number % len(tasks)]
        return learner.predict(learner.adapt(task.support), task.query.inputs).detach()

    expected = [answer(number) for number in range(len(tasks))]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(answer, range(200)))
    assert all(torch.equal(value, expected[number % len(tasks)]) for number, value in enumerate(found))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.cuda.flash_sdp_enabled()


def test_inference_mode_changes_nothing():
    torch.manual_seed(0)
    learner, task = learner_of(shared_layer().double()), examples()
    expected = learner.predict(learner.adapt(task.support), task.query.inputs)
    with torch.inference_mode():
        task = examples()
        found = learner.predict(learner.adapt(task.support), task.query.inputs)
    assert torch.equal(found, expected)


class OfItsInput(nn.Module):
    """A forward that detaches everything."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.out(x)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_loss_without_a_graph_is_refused(mode):
    with pytest.raises(ValueError, match="does not depend on the parameters that adapt"):
        meta_gradient(learner_of(OfItsInput().double()), stack([examples()]), mode)


class Clamped(nn.Module):
    def __init__(self, by_data: bool) -> None:
        super().__init__()
        self.out, self.by_data = nn.Linear(3, 2), by_data

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_data:
            self.out.weight.data.clamp_(-0.1, 0.1)
        else:
            with torch.no_grad():
                self.out.weight.clamp_(-0.1, 0.1)
        return self.out(x)


@pytest.mark.parametrize("by_data", [False, True])
def test_a_forward_that_changes_its_weights_in_place_is_refused(by_data):
    model = Clamped(by_data).double()
    before = model.out.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"changes its parameter 'out.weight' in place"):
        learner_of(model).adapt(examples().support)
    assert by_data is False or torch.equal(model.out.weight, before)


class Registry:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


class OutOfSight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)
        self.registry = Registry(self.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.registry.layer(x)


def test_weights_reached_through_an_unknown_object_are_refused():
    with pytest.raises(RuntimeError, match=r"the model uses 'out.weight' of the module itself"):
        learner_of(OutOfSight().double()).adapt(examples().support)


class Logging(nn.Module):
    """Depends on a list that it appends to."""

    def __init__(self) -> None:
        super().__init__()
        self.log, self.out = [], nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(x.detach())
        return self.out(x / len(self.log))


class Once(nn.Module):
    """Prepares something at its first call, by a guard that asks whether it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "shift"):
            return self.out(x - self.shift)
        self.shift = x.detach().mean(0)
        return self.out(x)


@pytest.mark.parametrize(("build", "name"), [(Counting, "calls"), (Logging, "log"), (Once, "shift")])
@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_state_outside_of_buffers_is_refused(build, name, mode):
    model = build().double()
    before = dict(vars(model))
    with pytest.raises(RuntimeError, match=rf"the model \({build.__name__}\) keeps something .* attribute {name!r}"):
        meta_gradient(learner_of(model), stack([examples()]), mode)
    assert vars(model) == before


class Observed(nn.Module):
    """Stores its features, which nothing depends on, and a mask that it makes anew for another size."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.features, self.mask = nn.Linear(3, 2), None, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mask is None or len(self.mask) != len(x):
            self.mask = torch.arange(len(x), dtype=x.dtype)[:, None]
        self.features = x * self.mask
        return self.out(self.features)


@pytest.mark.parametrize("mode", ["loop", "vmap", "traced"])
def test_what_a_forward_stores_for_others_is_dropped(mode):
    torch.manual_seed(0)
    model = Observed().double()
    learner = learner_of(model)
    meta_gradient(learner, stack([examples(), examples(seed=1)]), mode)
    assert model.features is None
    assert model.mask is None


class Storing(nn.Module):
    """Stores its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features = x.sin()
        return self.features


@pytest.mark.parametrize(("build", "name"), [(Counting, "calls"), (Logging, "log"), (Once, "shift")])
def test_the_refusal_names_the_layer_whose_state_matters(build, name):
    model = nn.Sequential(Storing(), build(), Storing()).double()
    with pytest.raises(RuntimeError, match=rf"the layer '1' \({build.__name__}\) .* attribute {name!r}"):
        learner_of(model).adapt(examples().support)


REFUSED = {
    "max_norm": (lambda: nn.Embedding(3, 2, max_norm=1.0), "max_norm"),
    "sparse": (lambda: nn.EmbeddingBag(3, 2, sparse=True), "sparse=False"),
    "lazy": (lambda: nn.LazyLinear(2), "one batch"),
    "DataParallel": (lambda: nn.DataParallel(nn.Linear(2, 2)), r"\.module"),
    "compiled": (lambda: torch.compile(nn.Linear(2, 2)), r"\._orig_mod"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile itself uses them
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_take_other_weights_is_refused_by_the_name_of_its_layer(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"the layer '1' .*{message}"):
        Function(nn.Sequential(nn.Identity(), build()))


def test_statistics_belong_to_the_layer_and_not_to_the_number_of_the_call():
    """A model that skips a layer for the support set only."""

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(x) if len(x) == 4 else self.b(self.a(x))

    function, task = Function(Skipping().double()), examples()
    _, statistics = function.support({}, task.support)
    assert list(statistics) == ["a", "b"]
    found = function.query({}, statistics, task.query.inputs)
    expected = (task.query.inputs - statistics["b"]["mean"]) / (statistics["b"]["var"] + 1e-5).sqrt()
    torch.testing.assert_close(found, expected)
    skipped = Batch(task.query.inputs, task.query.targets, task.query.weight)
    with pytest.raises(ValueError, match="'a' ran for the query but not for the support"):
        function.query({}, function.support({}, skipped)[1], task.support.inputs)


def test_unknown_parameters_are_refused():
    with pytest.raises(ValueError, match="no parameter or buffer of the name 'head.weight'"):
        Function(nn.Linear(3, 2)).query({"head.weight": torch.zeros(2, 3)}, {}, torch.zeros(1, 3))
