"""Random modules: a seed is the source of a class, the data of its tasks and the options of the learner.

`draw(seed)` writes the source of an `nn.Module` statement by statement, each by one of the productions of
`productions.py`, and keeps the first that plain PyTorch can train. Everything is float64.

Shape legend: n examples; shapes of drawn variables are without n: (d,) vectors, (L, d) sequences, (C, H, W) images.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from fuzz import layers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

SUPPORT, QUERY, OUTPUTS, VOCABULARY = 6, 4, 2, 7
Shape = tuple[int, ...]
Data = tuple[Any, Tensor, Any, Tensor]
"""Inputs and targets of the support set, inputs and targets of the query."""


@dataclass(frozen=True)
class Rule:
    """An inner optimiser: "sgd" or "adam"."""

    name: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-2  # Adam would magnify rounding errors of vanishing gradients

    def torch(self, params: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser of `torch.optim`."""
        if self.name == "sgd":
            return torch.optim.SGD(params, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return torch.optim.Adam(params, self.lr, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(repr=False)
class Case:
    """A drawn module with its tasks.

    Attributes:
        seed: what `draw` makes the case from; a name for cases that are written by hand.
        source: the source of the class.
        inputs: (generator, n) -> inputs of n examples.
        tags: the productions that were used, and what the oracle has to know: "stateful", the outputs depend on earlier
            calls; "random", they depend on random numbers; "detached", a state without gradient depends on the
            parameters, so that finite differences see what derivatives do not.
        may_refuse: whether a refusal is an answer, for what no learner can do.
    """

    seed: int | str
    source: str
    inputs: Callable[[torch.Generator, int], Any]
    tags: frozenset[str] = frozenset()
    rule: Rule = Rule("sgd", 0.1)
    steps: int = 2
    training: bool = True
    batchnorm: str = "support"
    objective: str = "mse"
    adaptable: str = "*"
    may_refuse: bool = False
    made: type[nn.Module] | None = None

    @property
    def number(self) -> int:
        """The seed of weights and data."""
        return self.seed if isinstance(self.seed, int) else sum(map(ord, self.seed))

    @cached_property
    def make(self) -> type[nn.Module]:
        """The class."""
        if self.made is not None:
            return self.made
        names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "partial": partial}
        names |= {"parametrizations": parametrizations, "parametrize": parametrize}
        names |= {name: thing for name, thing in vars(layers).items() if not name.startswith("_")}
        names["__name__"] = f"drawn_{self.seed}"
        exec(compile(self.source, f"<module of seed {self.seed}>", "exec"), names)
        return names["Drawn"]

    def build(self) -> nn.Module:
        """A new module, the same at each call."""
        with _float64(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated functions that models still use
            torch.manual_seed(self.number)
            module = self.make()
            with torch.no_grad():
                for parameter in module.parameters():  # no zeros or ones of an initialisation
                    parameter += 0.1 * torch.randn_like(parameter)
                for part in module.modules():
                    if isinstance(part, _NormBase) and part.running_mean is not None:
                        part.running_mean.normal_(0, 0.3)
                        part.running_var.uniform_(0.5, 1.5)
        return module.train(self.training)

    def data(self, task: int = 0) -> Data:
        """A task."""
        generator = torch.Generator().manual_seed(1000 * self.number + task)
        parts: list[Any] = []
        for rows in (SUPPORT, QUERY):
            if self.objective == "mse":
                targets = torch.randn(rows, OUTPUTS, generator=generator, dtype=torch.float64)
            else:
                targets = F.one_hot(torch.arange(rows) % OUTPUTS, OUTPUTS).double()
            parts += [self.inputs(generator, rows), targets]
        return tuple(parts)

    def loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """The loss of predictions (n, outputs), ()."""
        if self.objective == "mse":
            return F.mse_loss(prediction, targets)
        return F.cross_entropy(prediction, targets)

    def __repr__(self) -> str:
        return f"draw({self.seed!r})"

    def __str__(self) -> str:
        options = {
            name: getattr(self, name) for name in ("rule", "steps", "training", "batchnorm", "objective", "adaptable")
        }
        return f"seed {self.seed}: {', '.join(sorted(self.tags))}\n{options}\n{self.source}"


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _ContiguousGroupNorm(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def plain_randomness(case: Case) -> Iterator[None]:
    """A context with the random numbers of a case, also where a backward pass repeats a forward.

    Checkpointing stops as soon as it has repeated what it needs, when PyTorch's `rrelu` does not yet have its random
    slopes (seen in 2.13), so that gradients are of memory without values: here it repeats all. Inputs of group
    normalisation are contiguous, since its derivatives end the process for an input in channels-last layout that needs
    no gradient (2.13).
    """
    early_stop = torch.utils.checkpoint.set_checkpoint_early_stop(False)
    with torch.random.fork_rng(devices=[]), early_stop, _ContiguousGroupNorm():
        torch.manual_seed(case.number)
        yield


class Draw:
    """A class that is being drawn: the statements so far, and the shape of the variable `x` after them."""

    def __init__(self, rng: random.Random, training: bool, batchnorm: str) -> None:
        self.rng, self.training, self.batchnorm = rng, training, batchnorm
        self.shape: Shape = ()
        self.init: list[str] = []
        self.body: list[str] = []
        self.tags: set[str] = set()
        self.count = 0
        self.may_refuse = False

    def name(self, prefix: str = "m") -> str:
        """A new name of an attribute."""
        self.count += 1
        return f"{prefix}{self.count}"

    def add(self, expression: str, prefix: str = "m") -> str:
        """Register what an expression makes; returns how forward refers to it."""
        name = self.name(prefix)
        self.init.append(f"self.{name} = {expression}")
        return f"self.{name}"

    def line(self, *lines: str) -> None:
        """Append lines to forward.

        In them `<nn.Tanh()>` registers what the expression makes and stands for it, and `<w 2 3>` a parameter (2, 3).
        """
        self.body += [re.sub(r"<([^<>]+)>", self._register, line) for line in lines]

    def _register(self, match: re.Match) -> str:
        if match[1].split()[0] != "w":
            return self.add(match[1])
        shape = ", ".join(match[1].split()[1:])
        return self.add(f"nn.Parameter(0.5 * torch.randn(({shape + ',' if shape else ''})))", "w")

    def one_of(self, *options: str | Sequence[str]) -> None:
        """Append the lines of a random option."""
        option = self.rng.choice(options)
        self.line(*([option] if isinstance(option, str) else option))

    def tag(self, *tags: str) -> None:
        self.tags.update(tags)

    def source(self, signature: str) -> str:
        """The source of the class."""
        init = "\n        ".join(["super().__init__()", *self.init])
        body = "\n        ".join([*self.body])
        return (
            f"class Drawn(nn.Module):\n    def __init__(self):\n        {init}\n\n"
            f"    def forward(self, {signature}):\n        {body}\n        return x\n"
        )


def draw(seed: int) -> Case:
    """The case of a seed: the first candidate that plain PyTorch can train."""
    for attempt in range(50):
        case = _candidate(seed, attempt)
        if _is_trainable(case):
            return case
    raise AssertionError(f"no candidate of seed {seed} can be trained")


def _candidate(seed: int, attempt: int) -> Case:
    from fuzz import expressions, productions  # which import this module

    rng = random.Random(1_000_003 * seed + attempt)
    training = rng.random() < 0.7
    batchnorm = rng.choice(["support", "query", "running"])
    drawing = Draw(rng, training, batchnorm)
    signature, inputs = rng.choice(expressions.INPUTS)(drawing)
    for _ in range(rng.choice([2, 3, 4, 5])):
        productions.statement(drawing)
    productions.head(drawing)
    rule = rng.choice(
        [
            Rule("sgd", 0.1),
            Rule("sgd", 0.05, momentum=0.8),
            Rule("sgd", 0.1, weight_decay=0.3),
            Rule("sgd", 0.05, momentum=0.5, weight_decay=0.2),
            Rule("adam", 0.03, weight_decay=0.1),
            Rule("adam", 0.03),
        ]
    )
    return Case(
        seed,
        drawing.source(signature),
        inputs,
        tags=frozenset(drawing.tags),
        rule=rule,
        steps=rng.choice([1, 2, 2, 3]),
        training=training,
        batchnorm=batchnorm,
        objective=rng.choice(["mse", "mse", "classification"]),
        adaptable=rng.choice(["*", "*", "*", "*", "*", "head.*", "*weight*"]),
        may_refuse=drawing.may_refuse,
    )


def _is_trainable(case: Case) -> bool:
    """Whether plain PyTorch differentiates a training step and a query, with ordinary numbers and kept inputs."""
    support, targets, query, query_targets = case.data()
    versions = [leaf._version for leaf in tree_leaves((support, query))]
    try:
        with plain_randomness(case):
            module = case.build()
            case.loss(call(module, support), targets).backward()
            output = call(module, query)
            grads = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
            case.loss(output, query_targets).backward()
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    if versions != [leaf._version for leaf in tree_leaves((support, query))]:
        return False  # a module that writes into its inputs depends on who holds them
    large = max([float(values.detach().abs().max()) for values in (output, *grads) if values.numel()], default=1e9)
    return output.shape == (QUERY, OUTPUTS) and large < 20  # False for NaN


def call(module: nn.Module, inputs: Any) -> Tensor:
    """Call on inputs: a dict is keyword arguments, a tuple is arguments."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)
