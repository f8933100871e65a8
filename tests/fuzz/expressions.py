"""Inputs of drawn modules, and expressions of layers that keep a shape.

Shape legend: n examples; shapes are without n: (d,) vectors, (L, d) sequences, (C, H, W) images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fuzz.grammar import VOCABULARY, Draw
from torch import Tensor

Inputs = Callable[[torch.Generator, int], Any]
"""(generator, n) -> inputs of n examples."""


def normal(*shape: int) -> Inputs:
    """Normal inputs (n, *shape)."""
    return lambda generator, rows: torch.randn(rows, *shape, generator=generator, dtype=torch.float64)


def ids(*shape: int) -> Inputs:
    """Ids of symbols (n, *shape)."""
    return lambda generator, rows: torch.randint(VOCABULARY, (rows, *shape), generator=generator)


# Inputs: (draw) -> (arguments of forward, inputs); they set the shape of the variable x.


def vector(d: Draw) -> tuple[str, Inputs]:
    d.shape = (d.rng.choice([4, 6]),)
    return "x", normal(*d.shape)


def sequence(d: Draw) -> tuple[str, Inputs]:
    d.shape = (d.rng.choice([3, 5]), 4)
    return "x", normal(*d.shape)


def image(d: Draw) -> tuple[str, Inputs]:
    d.shape = (d.rng.choice([1, 2, 3]), 6, 6)
    return "x", normal(*d.shape)


def symbols(d: Draw) -> tuple[str, Inputs]:
    """Ids (n, 5), embedded: with a padding row, in a bag, by the function, tied to a linear layer."""
    kind = d.rng.choice(["plain", "padding", "bag", "functional", "functional padding", "tied"])
    d.tag(f"embedding {kind}")
    d.shape = (4,) if kind == "bag" else (5, 4)
    if kind == "bag":
        d.may_refuse = True  # PyTorch has no second derivative of it
        d.line(f"x = <nn.EmbeddingBag({VOCABULARY}, 4, mode={d.rng.choice(['mean', 'sum', 'max'])!r})>(ids)")
    elif kind == "functional":
        d.line(f"x = F.embedding(ids, <w {VOCABULARY} 4>)")
    elif kind == "functional padding":
        d.tag("detached")  # the padding row has no gradient, but the output depends on it
        d.line(f"x = F.embedding(ids, <w {VOCABULARY} 4>, padding_idx={d.rng.choice([1, -1])})")
    elif kind == "tied":
        embedding, output = d.add(f"nn.Embedding({VOCABULARY}, 4)"), d.add(f"nn.Linear(4, {VOCABULARY}, bias=False)")
        d.init.append(f"{output}.weight = {embedding}.weight")
        d.line(f"x = F.linear({output}({embedding}(ids)).tanh(), {embedding}.weight.T)")
    else:
        d.line(f"x = <nn.Embedding({VOCABULARY}, 4{', padding_idx=1' if kind == 'padding' else ''})>(ids)")
    return "ids", ids(5)


def two_tensors(d: Draw) -> tuple[str, Inputs]:
    """A tuple (x, other): two arguments."""
    d.shape = (4,)
    d.tag("tuple")
    d.line("x = x * torch.sigmoid(<nn.Linear(3, 4)>(other))")
    return "x, other", lambda generator, rows: (normal(4)(generator, rows), normal(3)(generator, rows))


def keywords(d: Draw) -> tuple[str, Inputs]:
    """A dict with ids and a nested dict: keyword arguments."""
    d.shape = (4,)
    d.tag("dict")
    d.line(f"x = <nn.Embedding({VOCABULARY}, 4)>(ids).sum(1) + <nn.Linear(3, 4)>(extra['values'][0])")

    def inputs(generator: torch.Generator, rows: int) -> dict[str, Any]:
        values: tuple[Tensor] = (normal(3)(generator, rows),)
        return {"ids": ids(3)(generator, rows), "extra": {"values": values}}

    return "*, ids, extra", inputs


INPUTS = [vector, sequence, image, image, symbols, two_tensors, keywords]


# Expressions of layers.

ACTIVATIONS = [
    "nn.Tanh()", "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.LeakyReLU(0.1)", "nn.LeakyReLU(-0.4)", "nn.ELU()",
    "nn.LeakyReLU(0.2, inplace=True)", "nn.ELU(inplace=True)", "nn.GELU()", "nn.GELU('tanh')", "nn.SiLU()",
    "nn.SiLU(inplace=True)", "nn.Softplus()", "nn.Sigmoid()", "nn.PReLU()", "nn.Hardtanh()", "nn.Softmax(-1)",
    "nn.LogSigmoid()", "nn.CELU(inplace=True)", "nn.Mish()", "nn.Softsign()", "nn.Tanhshrink()", "nn.SELU()",
    "nn.Dropout(0.0)", "nn.Hardswish()", "nn.ReLU6()", "nn.Identity()", "nn.Softshrink(0.1)",
    "nn.Threshold(0.1, 0.2)", "nn.RReLU(0.2, 0.2)", "nn.Softmin(-1)",
]  # fmt: skip


def activation(d: Draw) -> str:
    """An activation of any shape."""
    if d.rng.random() < 0.02:
        d.may_refuse = True  # PyTorch has no second derivative of it
        return "nn.Hardsigmoid()"
    return f"nn.PReLU({d.shape[0]})" if d.rng.random() < 0.1 else d.rng.choice(ACTIVATIONS)


def linear(d: Draw) -> str:
    """A layer with weights that keeps the shape."""
    first, last = d.shape[0], d.shape[-1]
    options = [f"nn.Linear({last}, {last})"]
    if len(d.shape) == 1:
        options += [f"nn.Linear({last}, {last}, bias=False)"]
    if len(d.shape) == 2:
        options += [f"nn.{kind}({first}, {first}, 3, padding=1)" for kind in ("Conv1d", "ConvTranspose1d")]
    if len(d.shape) == 3:
        options += [
            f"nn.Conv2d({first}, {first}, 3, padding=1)",
            f"nn.Conv2d({first}, {first}, 3, padding=1, padding_mode='circular')",
            f"nn.Conv2d({first}, {first}, 3, padding=2, dilation=2)",
            f"nn.Conv2d({first}, {first}, 1)",
            f"nn.Conv2d({first}, {first}, 3, padding=1, groups={first}, bias=False)",
            f"nn.ConvTranspose2d({first}, {first}, 3, padding=1)",
        ]
    return d.rng.choice(options)


def norm(d: Draw) -> str:
    """A norm layer in any mode."""
    first, last, dim = d.shape[0], d.shape[-1], max(len(d.shape) - 1, 1)
    affine = d.rng.choice(["", ", affine=False", ", momentum=None"])
    track = d.rng.choice(["", ", track_running_stats=False"]) if d.batchnorm != "running" else ""
    options = [
        f"nn.LayerNorm({last})",
        f"nn.LayerNorm({list(d.shape)})",
        f"nn.LayerNorm({last}, elementwise_affine=False)",
        f"nn.LayerNorm({last}, bias=False)",
        f"nn.RMSNorm({last})",
        f"nn.GroupNorm({first // 2 or 1}, {first})",
        *[f"nn.BatchNorm{dim}d({first}{affine}{track})"] * 3,
    ]
    if len(d.shape) > 1:
        flags = [f"{affine}{track}" for affine in ("", ", affine=True") for track in ("", ", track_running_stats=True")]
        options += [f"nn.InstanceNorm{dim}d({first}{d.rng.choice(flags)})"] * 2
    if len(d.shape) == 3:
        options += ["nn.LocalResponseNorm(2)"]
    found = d.rng.choice(options)
    d.tag(found.split("(")[0].removeprefix("nn."))
    return found


def random_layer(d: Draw) -> str:
    """A layer that draws random numbers in training mode, of any shape."""
    if d.training:
        d.tag("random")
    options = ["nn.Dropout(0.3)", "nn.AlphaDropout(0.2)", "nn.RReLU(0.1, 0.9)", "nn.RReLU(0.1, 0.9, inplace=True)"]
    if len(d.shape) > 1:
        options += [f"nn.Dropout{len(d.shape) - 1}d(0.3)", "nn.FeatureAlphaDropout(0.2)"]
    return d.rng.choice(options)


def layer(d: Draw) -> str:
    """An expression of a layer that keeps the shape."""
    return d.rng.choice([activation, linear, norm])(d)


def block(d: Draw) -> str:
    """A Sequential with weights that keeps the shape."""
    parts = [linear(d), *(d.rng.choice([activation, norm])(d) for _ in range(d.rng.choice([1, 2])))]
    return f"nn.Sequential({', '.join(parts)})"
