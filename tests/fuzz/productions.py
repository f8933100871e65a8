"""The productions of the grammar: each appends statements to a class that is being drawn.

Shape legend: n examples; shapes are without n: (d,) vectors, (L, d) sequences, (C, H, W) images.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from fuzz.grammar import OUTPUTS, VOCABULARY, Draw

Inputs = Callable[[torch.Generator, int], Any]


def _normal(*shape: int) -> Inputs:
    return lambda generator, rows: torch.randn(rows, *shape, generator=generator, dtype=torch.float64)


def _ids(*shape: int) -> Inputs:
    return lambda generator, rows: torch.randint(VOCABULARY, (rows, *shape), generator=generator)


# Inputs: (draw) -> (arguments of forward, inputs of n examples); they set the shape of the variable x.


def vector(d: Draw) -> tuple[str, Inputs]:
    d.shape = (d.rng.choice([4, 6]),)
    return "x", _normal(*d.shape)


def sequence(d: Draw) -> tuple[str, Inputs]:
    d.shape = (d.rng.choice([3, 5]), 4)
    return "x", _normal(*d.shape)


def image(d: Draw) -> tuple[str, Inputs]:
    d.shape = (d.rng.choice([1, 2, 3]), 6, 6)
    return "x", _normal(*d.shape)


def symbols(d: Draw) -> tuple[str, Inputs]:
    """Ids (n, 5), embedded: padding, bags, the function, tied to a linear layer."""
    kind = d.rng.choice(["Embedding", "padding", "bag", "functional", "tied"])
    d.tag(f"embedding {kind}")
    d.shape = (4,) if kind == "bag" else (5, 4)
    if kind == "bag":
        mode = d.rng.choice(["mean", "sum", "max"])
        d.may_refuse = True  # PyTorch has no second derivative of it
        d.line(f"x = {d.add(f'nn.EmbeddingBag({VOCABULARY}, 4, mode={mode!r})')}(ids)")
    elif kind == "functional":
        padding = d.rng.choice([None, 1, -1])
        if padding is not None:
            d.tag("detached")  # the padding row has no gradient, but the output depends on it
        d.line(f"x = F.embedding(ids, {d.parameter(VOCABULARY, 4)}, padding_idx={padding})")
    else:
        options = ", padding_idx=1" if kind == "padding" else ""
        embedding = d.add(f"nn.Embedding({VOCABULARY}, 4{options})")
        d.line(f"x = {embedding}(ids)")
        if kind == "tied":
            output = d.add(f"nn.Linear(4, {VOCABULARY}, bias=False)")
            d.init.append(f"{output}.weight = {embedding}.weight")
            d.line(f"x = F.linear({output}(x).tanh(), {embedding}.weight.T)")
    return "ids", _ids(5)


def two_tensors(d: Draw) -> tuple[str, Inputs]:
    """A tuple (x, other): two arguments."""
    d.shape = (4,)
    d.tag("tuple")
    d.line(f"x = x * torch.sigmoid({d.add('nn.Linear(3, 4)')}(other))")
    return "x, other", lambda generator, rows: (_normal(4)(generator, rows), _normal(3)(generator, rows))


def keywords(d: Draw) -> tuple[str, Inputs]:
    """A dict with ids and a nested dict: keyword arguments."""
    d.shape = (4,)
    d.tag("dict")
    embedding = d.add(f"nn.Embedding({VOCABULARY}, 4)")
    d.line(f"x = {embedding}(ids).sum(1) + {d.add('nn.Linear(3, 4)')}(extra['values'][0])")

    def inputs(generator: torch.Generator, rows: int) -> Any:
        return {"ids": _ids(3)(generator, rows), "extra": {"values": (_normal(3)(generator, rows),)}}

    return "*, ids, extra", inputs


INPUTS = [vector, sequence, image, image, symbols, two_tensors, keywords]


# Expressions of modules.

ACTIVATIONS = [
    "nn.Tanh()", "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.LeakyReLU(0.1)", "nn.LeakyReLU(-0.4)",
    "nn.LeakyReLU(0.2, inplace=True)", "nn.ELU()", "nn.ELU(inplace=True)", "nn.GELU()", "nn.GELU('tanh')", "nn.SiLU()",
    "nn.SiLU(inplace=True)", "nn.Softplus()", "nn.Sigmoid()", "nn.PReLU()", "nn.Hardtanh()", "nn.Softmax(-1)",
    "nn.LogSigmoid()", "nn.CELU(inplace=True)", "nn.Mish()", "nn.Softsign()", "nn.Tanhshrink()", "nn.SELU()",
    "nn.Dropout(0.0)", "nn.Hardswish()", "nn.ReLU6()", "nn.Identity()", "nn.Softshrink(0.1)", "nn.Threshold(0.1, 0.2)",
]  # fmt: skip


def activation(d: Draw) -> str:
    """An activation of any shape."""
    if d.rng.random() < 0.1:
        return f"nn.PReLU({d.shape[0]})"
    return d.rng.choice(ACTIVATIONS)


def linear(d: Draw) -> str:
    """A layer with weights that keeps the shape."""
    first, last, pick = d.shape[0], d.shape[-1], d.rng.random()
    if len(d.shape) == 1:
        if pick < 0.1:
            return f"nn.Bilinear({last}, {last}, {last})" if pick < 0 else f"nn.Linear({last}, {last}, bias=False)"
        return f"nn.Linear({last}, {last})"
    if len(d.shape) == 2:
        if pick < 0.5:
            return f"nn.Linear({last}, {last})"
        kind = "Conv1d" if pick < 0.8 else "ConvTranspose1d"
        return f"nn.{kind}({first}, {first}, 3, padding=1)"
    options = [
        f"nn.Conv2d({first}, {first}, 3, padding=1)",
        f"nn.Conv2d({first}, {first}, 3, padding=1, padding_mode='circular')",
        f"nn.Conv2d({first}, {first}, 3, padding=2, dilation=2)",
        f"nn.Conv2d({first}, {first}, 1)",
        f"nn.Conv2d({first}, {first}, 3, padding=1, groups={first}, bias=False)",
        f"nn.ConvTranspose2d({first}, {first}, 3, padding=1)",
        f"nn.Linear({last}, {last})",
    ]
    return d.rng.choice(options)


def norm(d: Draw) -> str:
    """A norm layer in any mode."""
    first, last = d.shape[0], d.shape[-1]
    affine = d.rng.choice(["", ", affine=False"])
    track = d.rng.choice(["", ", track_running_stats=False"]) if d.batchnorm != "running" else ""
    options = [f"nn.LayerNorm({last})", f"nn.LayerNorm({list(d.shape)})", f"nn.RMSNorm({last})"]
    options += [f"nn.LayerNorm({last}, elementwise_affine=False)", f"nn.GroupNorm({first // 2 or 1}, {first})"]
    dim = max(len(d.shape) - 1, 1)
    options += [f"nn.BatchNorm{dim}d({first}{affine}{track})"] * 3
    if len(d.shape) > 1:
        flags = d.rng.choice(
            ["", ", affine=True", ", track_running_stats=True", ", affine=True, track_running_stats=True"]
        )
        options += [f"nn.InstanceNorm{dim}d({first}{flags})"] * 2
    else:
        options += [f"nn.BatchNorm1d({first}{affine}, momentum=None)"]
    if len(d.shape) == 3:
        options += ["nn.LocalResponseNorm(2)"]
    found = d.rng.choice(options)
    d.tag(found.split("(")[0].removeprefix("nn."))
    return found


def layer(d: Draw) -> str:
    """An expression of a module that keeps the shape."""
    return d.rng.choice([activation, linear, norm])(d)


def block(d: Draw) -> str:
    """A Sequential with weights that keeps the shape."""
    parts = [linear(d), *(d.rng.choice([activation, norm])(d) for _ in range(d.rng.choice([1, 2])))]
    return f"nn.Sequential({', '.join(parts)})"


# Statements: (draw) -> None. They keep the kind of x: vectors, sequences, images.


def statement(d: Draw) -> None:
    """A statement of a random production, which its tag names."""
    options = [*ANY] * 2 + {1: VECTOR, 2: SEQUENCE, 3: IMAGE}[len(d.shape)] * 4
    production = d.rng.choice(options)
    d.tag(production.__name__)
    production(d)


def head(d: Draw) -> None:
    """Flatten, and a linear head; sometimes after a mean over positions."""
    size = d.shape[-1] if len(d.shape) == 2 else 1
    if len(d.shape) == 2 and d.rng.random() < 0.5:
        d.line("x = x.mean(1)")
    else:
        size = 1
        for length in d.shape:
            size *= length
        d.line("x = x.flatten(1)")
    d.init.append(f"self.head = nn.Linear({size}, {OUTPUTS})")
    d.line("x = self.head(x)")


def _pick(rng: Random, *options: Any) -> Any:
    return rng.choice(options)


def one_layer(d: Draw) -> None:
    d.line(f"x = {d.add(layer(d))}(x)")


def residual(d: Draw) -> None:
    part = d.add(block(d))
    d.line(*_pick(d.rng, [f"x = x + {part}(x)"], [f"y = {part}(x)", "y += x", "x = y"], [f"x = torch.add(x, {part}(x), alpha=0.5)"],
                  [f"y = {part}(x).clone()", "y.add_(x, alpha=0.5)", "x = y"]))  # fmt: skip


def in_place(d: Draw) -> None:
    """In-place operations on x and on its views."""
    choices = [
        ["y = x.clone()", "y.view(len(y), -1)[:, 0] = 0", "x = y + x.mean()"],
        ["y = x.clone()", "y[:, 0] *= 2", "x = y"],
        ["x = x * 1.5", "F.relu_(x)"],
        ["x = F.leaky_relu_(x + 0.1, -0.3)"],
        ["y = torch.tanh(x)", "x = y.clone().mul_(x).add_(0.1)"],
        ["x = x + 0", "x[:, -1:].relu_()"],
        ["x = x + 0", "x.select(1, 0).copy_(x.select(1, 1).sin())"],
        ["x = x.clone()", "x[:, 0].zero_()"],
        ["x = x.clone()", "x.index_put_((torch.arange(len(x)), torch.zeros(len(x), dtype=torch.long)), x[:, 1].sin())"],
        ["x = x.index_fill(1, torch.tensor([0]), 0.3)"],
        ["x = x.index_add(1, torch.tensor([0]), x[:, 1:2].cos())"],
        ["x = x.masked_fill(x > 0.8, 0.1)"],
        ["x = torch.where(x > 0, x, 0.3 * x)"],
        ["y = torch.zeros_like(x)", "y[:, :1] = x[:, :1].sin()", "x = x + y"],
        ["y = torch.empty_like(x)", "y.copy_(x)", "y.exp_()", "x = 0.3 * y"],
        ["y = x.new_zeros(x.shape)", "y[:] = x", "x = y.tanh_()"],
        ["x = x.clone()", "x.clamp_(-1, 1)"],
    ]
    d.line(*d.rng.choice(choices))


def scattered_mask(d: Draw) -> None:
    """A mask that scatter_ writes into a view."""
    zeros = _pick(d.rng, "torch.zeros_like(x)", "x.new_zeros(x.shape)", "torch.zeros_like(x) * x")
    d.line(f"mask = {zeros}", "flat = mask.view(len(x), -1)")
    d.line("index = (torch.arange(len(x))[:, None] + torch.arange(3)) % flat.shape[1]")
    d.line(_pick(d.rng, "flat.scatter_(1, index, 1.0)", "flat.scatter_(1, index, x.reshape(len(x), -1)[:, :3])"))
    d.line(_pick(d.rng, "x = x * mask", "x = x + mask", "x = x * (1 - mask)"))


def shared_twice(d: Draw) -> None:
    """One module registered twice, in a Sequential or under two names."""
    part = d.rng.choice([linear, norm, lambda d: "nn.PReLU()"])(d)
    shared = d.add(part)
    how = d.rng.choice(["sequential", "names", "twice", "list"])
    if how == "sequential":
        d.line(f"x = {d.add(f'nn.Sequential({shared}, {activation(d)}, {shared})')}(x)")
    elif how == "names":
        d.line(f"x = {shared}(x)", f"x = {d.add(shared)}(x.tanh())")
    elif how == "twice":
        d.line(f"x = {shared}(x)", f"x = {d.add(f'Twice({shared})')}(x)")
    else:
        d.line(
            f"for part in {d.add(f'nn.ModuleList([{shared}, {linear(d)}, {shared}])')}:", "    x = torch.tanh(part(x))"
        )


def called_twice(d: Draw) -> None:
    part = d.add(d.rng.choice([linear, norm, block])(d))
    d.line(f"x = {part}(torch.tanh({part}(x)))")


def tied(d: Draw) -> None:
    first, second = d.add(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})"), d.add(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})")
    d.init.append(f"{second}.weight = {first}.weight")
    if d.rng.random() < 0.3:
        d.init.append(f"{second}.bias = {first}.bias")
    d.line(f"x = {second}(torch.tanh({first}(x)))")


def shared_buffer(d: Draw) -> None:
    factor = d.name("factor")
    kind = d.rng.choice(["Multiply", "CountingMultiply"])
    if kind == "CountingMultiply":
        d.tag("stateful")
    d.init.append(f"{factor} = torch.tensor(0.9)")
    first, second = d.add(f"{kind}({factor})"), d.add(f"Multiply({factor})")
    d.line(f"x = {second}(torch.tanh({first}(x)))")


def parametrized(d: Draw) -> None:
    size = d.shape[-1]
    part = d.add(f"nn.Linear({size}, {size})")
    kind = d.rng.choice(
        ["weight_norm", "orthogonal", "spectral_norm", "symmetric", "old weight_norm", "old spectral_norm", "two"]
    )
    lines = {
        "weight_norm": [f"parametrizations.weight_norm({part})"],
        "orthogonal": [f"parametrizations.orthogonal({part}, orthogonal_map={_pick(d.rng, 'cayley', 'matrix_exp')!r})"],
        "spectral_norm": [f"parametrizations.spectral_norm({part})"],
        "symmetric": [f"parametrize.register_parametrization({part}, 'weight', Symmetric())"],
        "old weight_norm": [f"torch.nn.utils.weight_norm({part})"],
        "old spectral_norm": [f"torch.nn.utils.spectral_norm({part})"],
        "two": [f"parametrize.register_parametrization({part}, '{name}', {layer})" for name, layer in
                (("weight", "Symmetric()"), ("weight", "Gain()"), ("bias", "Gain()"))],
    }  # fmt: skip
    d.init += lines[kind]
    d.tag(kind)
    if "spectral" in kind and d.training:
        d.tag("stateful", "detached")
    d.line(f"x = {part}(x)")


def learning_buffer(d: Draw) -> None:
    kind = d.rng.choice(["Counter", "AssignedCounter", "LongCounter", "MovingAverage", "AssignedAverage"])
    average = "Average" in kind
    d.tag(kind, "stateful", *(["detached"] if average else []))
    d.line(f"x = {d.add(f'{kind}({str(d.shape)[1:-1] if average else str()})')}(x)")


def python_attribute(d: Draw) -> None:
    kind = d.rng.choice(["Calls", "Alternating", "Remembering", "Saving"])
    d.tag(kind, *(["stateful"] if kind != "Saving" else []), *(["detached"] if kind == "Remembering" else []))
    d.line(f"x = {d.add(f'{kind}()')}(x)")


def checkpointed(d: Draw) -> None:
    part = d.add(block(d))
    gain = d.parameter()
    d.line(_pick(
        d.rng,
        f"x = torch.utils.checkpoint.checkpoint({part}, x, use_reentrant=False)",
        f"x = torch.utils.checkpoint.checkpoint(lambda h: {part}(h) * {gain}, x, use_reentrant=False)",
        f"x = torch.utils.checkpoint.checkpoint_sequential({part}, 2, x, use_reentrant=False)",
        f"x = x + torch.utils.checkpoint.checkpoint({part}, x * {gain}, use_reentrant=False)",
    ))  # fmt: skip


def with_hooks(d: Draw) -> None:
    part = block(d) if d.rng.random() < 0.5 else linear(d)
    gain = d.add("Gain()")
    hook = d.rng.choice([
        "forward=lambda module, args, output: output * 1.3",
        f"forward=lambda module, args, output: {gain}(output)",
        "pre=lambda module, args: (torch.tanh(args[0]),)",
        f"pre=lambda module, args: (args[0] + {gain}.gain,)",
        "backward=lambda module, grad_input, grad_output: None",
        "forward=lambda module, args, output: setattr(module, 'seen', output)",
    ])  # fmt: skip
    d.line(f"x = {d.add(f'hooked({part}, {hook})')}(x)")


def masked_gradient(d: Draw) -> None:
    part = d.add(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})")
    d.init.append(f"masked({part}.weight)")
    d.line(f"x = {part}(x)")


def held_modules(d: Draw) -> None:
    """Submodules that Python attributes reach: bound methods, lists, dicts, partials, closures."""
    part, attribute = d.add(linear(d)), d.name("held")
    made, used = d.rng.choice([
        (f"{part}.forward", "{}(x)"),
        (f"[{part}, torch.tanh]", "{0}[1]({0}[0](x))"),
        (f"{{'layer': {part}}}", "{}['layer'](x)"),
        (f"partial({part}.forward)", "{}(x)"),
        (f"lambda h: {part}(h)", "{}(x)"),
        (f"partial(lambda h, scale: {part}(h) * scale, scale=0.7)", "{}(x)"),
        (f"({part}, 2.0)", "{0}[0](x) * {0}[1]"),
        (f"[{{'deep': ({part}.__call__,)}}]", "{}[0]['deep'][0](x)"),
    ])  # fmt: skip
    d.init.append(f"self.{attribute} = {made}")
    d.line(f"x = {used.format(f'self.{attribute}')}")


def held_parameters(d: Draw) -> None:
    """Parameters that Python attributes hold beside the registration."""
    size = d.shape[-1]
    weight, attribute = d.parameter(size, size), d.name("held")
    made, used = d.rng.choice([
        (f"[{weight}]", "F.linear(x, {}[0])"),
        (f"partial(F.linear, weight={weight})", "{}(x)"),
        (f"lambda h, w={weight}: F.linear(h, w)", "{}(x)"),
        (f"{{'w': {weight}}}", "x @ {}['w']"),
    ])  # fmt: skip
    d.init.append(f"self.{attribute} = {made}")
    d.line(f"x = {used.format(f'self.{attribute}')}")


def unused(d: Draw) -> None:
    part = d.add(block(d))
    d.parameter(2)
    if d.rng.random() < 0.3:
        d.line(f"{part}(x)")


def frozen(d: Draw) -> None:
    part = d.add(block(d))
    d.init.append(_pick(d.rng, f"{part}.requires_grad_(False)", f"{part}[0].weight.requires_grad_(False)"))
    d.line(f"x = {part}(x)")


def evaluated_dropout(d: Draw) -> None:
    part = d.add(_pick(d.rng, "nn.Dropout(0.0)", "nn.Dropout(0.0, inplace=True)", "nn.AlphaDropout(0.0)") if d.training else
                 _pick(d.rng, "nn.Dropout(0.5)", "nn.Dropout(0.5, inplace=True)", "nn.FeatureAlphaDropout(0.5)"))  # fmt: skip
    d.line(f"x = {part}(x * 1.0)", "x = F.dropout(x, 0.5, self.training and False)")


def elementwise(d: Draw) -> None:
    gain = d.parameter(*d.shape[-1:])
    d.line(_pick(
        d.rng, f"x = x * {gain}", f"x = x * {gain}.exp()", f"x = torch.addcmul(x, x, {gain})", f"x = torch.lerp(x, x.sin(), {gain})",
        "x = x / (1 + x.abs())", "x = x.softmax(-1) * x", "x = F.normalize(x, dim=-1)", "x = x - x.mean(-1, keepdim=True)",
        "x = torch.logaddexp(x, -x)", "x = x.cumsum(1)", "x = x.double() + x.to(torch.float64).sin()",
        "x = x * x.std(-1, keepdim=True)", f"x = torch.nan_to_num(x) * {gain}", "x = x.amax(-1, keepdim=True) - x",
    ))  # fmt: skip


def views(d: Draw) -> None:
    d.line(*_pick(
        d.rng, ["x = x.flip(1)"], ["x = x.roll(1, 1)"], ["x = torch.cat(x.chunk(2, -1)[::-1], -1)"],
        ["x = torch.stack([x, x.sin()]).mean(0)"], ["x = torch.cat([part.tanh() for part in x.split(1, 1)], 1)"],
        ["x = torch.stack(x.unbind(1), 1)"], ["x = x.flatten(1).unflatten(1, x.shape[1:])"],
        ["x = x.reshape(len(x), -1).view(x.shape)"],
        ["x = x.contiguous().as_strided(x.shape, x.contiguous().stride())"],
        ["x = x[:, torch.arange(x.shape[1] - 1, -1, -1)]"], ["x = x.expand(2, *x.shape).sum(0)"],
        ["x = x.contiguous()", f"x = x.as_strided(x.shape, x.stride()) * {d.parameter()}"],
        ["x = x.unsqueeze(-1).squeeze(-1)"], ["x = F.pad(x, (1, 0))[..., :-1]"], ["x = x.T.T" if len(d.shape) == 1 else "x = x.mT.mT"],
        ["x = x.gather(-1, torch.zeros(x.shape, dtype=torch.long)) + x"], ["x = x.sort(-1).values"],
        ["x = x.diff(dim=-1, prepend=x[..., :1])"], ["x = x.take_along_dim(x.argsort(-1), -1)"],
        ["x = x.unfold(-1, 2, 1).mean(-1)", "x = F.pad(x, (0, 1))"],
    ))  # fmt: skip


def skipped(d: Draw) -> None:
    """A norm that the query skips, before another."""
    d.tag("unequal")
    d.line(f"x = {d.add(f'Long({norm(d)}, {norm(d)})')}(x)")


def nested(d: Draw) -> None:
    d.line(f"x = {d.add(f'nn.Sequential({block(d)}, {block(d)})')}(x)")


def functional_linear(d: Draw) -> None:
    size = d.shape[-1]
    part, weight = d.add(f"nn.Linear({size}, {size})"), d.parameter(size, size)
    d.line(*_pick(
        d.rng, [f"x = F.linear({part}(x).tanh(), {part}.weight)"], [f"x = F.linear(x, {weight}, {part}.bias)"],
        [f"x = torch.einsum('n...i,ij->n...j', x, {weight})"], [f"x = x @ {weight}.T"],
        [f"x = F.layer_norm({part}(x), ({size},), {d.parameter(size)}, {d.parameter(size)})"],
        [f"x = torch.layer_norm(x, ({size},), {d.parameter(size)})"],
        [f"x = torch.tensordot(x, {weight}, 1)"], [f"x = F.rms_norm(x, ({size},), {d.parameter(size)})"],
        [f"x = F.linear(x, {weight} - {weight}.T)"], [f"x = F.prelu(x, {d.parameter(1)})"],
        [f"x = F.linear(x, F.normalize({weight}, dim=1))"],
        [f"x = torch.func.functional_call({part}, {{'weight': {weight}}}, (x,))"],
    ))  # fmt: skip


# Vectors.


def wider(d: Draw) -> None:
    size = d.rng.choice([4, 6, 8])
    d.line(f"x = {d.add(f'nn.Linear({d.shape[0]}, {size})')}(x)")
    d.shape = (size,)


def gated(d: Draw) -> None:
    size = d.shape[0]
    d.line(f"x = {_pick(d.rng, 'F.glu', d.add('nn.GLU()'))}({d.add(f'nn.Linear({size}, {2 * size})')}(x))")


def to_sequence(d: Draw) -> None:
    half = d.shape[0] // 2
    d.line(_pick(d.rng, f"x = x.view(len(x), 2, {half})", f"x = x.unflatten(1, (2, {half}))",
                 f"x = x.contiguous().as_strided((len(x), 2, {half}), ({2 * half}, 1, 2))"))  # fmt: skip
    size = 2 * half
    d.line(f"x = {d.add(f'nn.Linear({half}, {size})')}(x)")
    d.shape = (2, size)


def functional_batch_norm(d: Draw) -> None:
    if d.batchnorm == "query":
        d.line(f"x = F.batch_norm(x, None, None, {d.parameter(d.shape[0])}, None, True)")
    else:
        one_layer(d)


# Sequences.


def recurrent(d: Draw) -> None:
    length, size = d.shape
    kind = d.rng.choice(["RNN", "LSTM", "GRU"])
    bidirectional, layers, first = d.rng.random() < 0.3, d.rng.choice([1, 1, 2]), d.rng.random() < 0.6
    options = "".join([
        ", batch_first=True" if first else "", ", bidirectional=True" if bidirectional else "",
        f", num_layers={layers}" if layers > 1 else "", ", bias=False" if d.rng.random() < 0.2 else "",
        ", nonlinearity='relu'" if kind == "RNN" and d.rng.random() < 0.3 else "",
        ", proj_size=2" if kind == "LSTM" and d.rng.random() < 0.1 else "",
    ])  # fmt: skip
    d.tag(kind)
    hidden = 2 if "proj_size" in options else 3
    part = d.add(f"nn.{kind}({size}, 3{options})")
    d.line(f"x = {part}(x)[0]" if first else f"x = {part}(x.transpose(0, 1))[0].transpose(0, 1)")
    d.shape = (length, hidden * (2 if bidirectional else 1))
    wide = d.rng.choice([4, 6])
    d.line(f"x = {d.add(f'nn.Linear({d.shape[1]}, {wide})')}(x)")
    d.shape = (length, wide)


def cells(d: Draw) -> None:
    kind = d.rng.choice(["RNNCell", "GRUCell", "LSTMCell"])
    cell = d.add(f"nn.{kind}({d.shape[1]}, {d.shape[1]})")
    d.tag(kind)
    if kind == "LSTMCell":
        d.line(
            "state, steps = None, []",
            "for row in x.unbind(1):",
            f"    state = {cell}(row, state)",
            "    steps.append(state[0])",
        )
    else:
        d.line(
            "state, steps = None, []",
            "for row in x.unbind(1):",
            f"    state = {cell}(row, state)",
            "    steps.append(state)",
        )
    d.line("x = torch.stack(steps, 1)")


def attention(d: Draw) -> None:
    size, length = d.shape[1], d.shape[0]
    kind = d.rng.choice(["mha", "mha", "functional", "encoder", "encoder", "decoder"])
    d.tag(f"attention {kind}")
    if kind == "mha":
        first = d.rng.random() < 0.6
        part = d.add(f"nn.MultiheadAttention({size}, 2, batch_first={first})")
        weights = d.rng.choice([True, False])
        mask = f", attn_mask=torch.ones({length}, {length}, dtype=torch.bool).triu(1)" if d.rng.random() < 0.3 else ""
        d.line(*([] if first else ["x = x.transpose(0, 1)"]), f"x = {part}(x, x, x, need_weights={weights}{mask})[0]",
               *([] if first else ["x = x.transpose(0, 1)"]))  # fmt: skip
    elif kind == "functional":
        qkv = d.add(f"nn.Linear({size}, {3 * size})")
        causal = d.rng.choice(["", ", is_causal=True"])
        d.line(f"q, k, v = {qkv}(x).unflatten(-1, (3, 2, {size // 2})).permute(2, 0, 3, 1, 4)",
               f"x = F.scaled_dot_product_attention(q, k, v{causal}).transpose(1, 2).flatten(2)")  # fmt: skip
    else:
        name = "TransformerEncoderLayer" if kind == "encoder" else "TransformerDecoderLayer"
        options = f"norm_first={d.rng.choice([True, False])}, activation={d.rng.choice(['relu', 'gelu'])!r}"
        part = d.add(f"nn.{name}({size}, 2, 6, dropout=0.0, batch_first=True, {options})")
        d.line(f"x = {part}(x)" if kind == "encoder" else f"x = {part}(x, x.flip(1))")


def permuted(d: Draw) -> None:
    length, size = d.shape
    if size % 2:
        return one_layer(d)
    options = [
        (["x = x.transpose(1, 2)"], (size, length)),
        (["x = x.movedim(1, 2)", f"x = {d.add(f'nn.Linear({length}, 4)')}(x)"], (size, 4)),
        (["x = x.permute(0, 2, 1).contiguous().view(x.shape)"], d.shape),
        (["x = F.max_pool1d(x, 2)", f"x = {d.add(f'nn.Linear({size // 2}, 4)')}(x)"], (length, 4)),
        (["x = F.adaptive_avg_pool1d(x, 4)"], (length, 4)),
        (["x = torch.einsum('nld,nmd->nlm', x, x)", f"x = {d.add(f'nn.Linear({length}, 4)')}(x)"], (length, 4)),
        (["x = torch.bmm(x, x.mT).softmax(-1) @ x"], d.shape),
        (["x = x.unfold(2, 2, 2).flatten(2)"], d.shape),
    ]
    lines, d.shape = d.rng.choice(options)
    d.line(*lines)
    if d.shape[1] % 2:
        d.line(f"x = {d.add(f'nn.Linear({d.shape[1]}, 4)')}(x)")
        d.shape = (d.shape[0], 4)
    return None


# Images.


def convolution(d: Draw) -> None:
    channels = d.rng.choice([2, 3, 4])
    d.line(f"x = {d.add(f'nn.Conv2d({d.shape[0]}, {channels}, 3, padding=1)')}(x)")
    d.shape = (channels, *d.shape[1:])


def pooled_activation(d: Draw) -> None:
    """A pooling after an activation, with or without work in between."""
    if d.shape[1] < 4:
        return one_layer(d)
    gain = d.parameter()
    d.line(_pick(
        d.rng, "y = F.relu(x)", "y = torch.relu(x)", "y = F.leaky_relu(x)", "y = F.leaky_relu(x, -0.4)", "y = F.leaky_relu(x, 0.3)",
        "y = F.gelu(x)", f"y = {d.add(activation(d))}(x)",
    ))  # fmt: skip
    d.line(*_pick(
        d.rng, [], ["y += 0.3 * x.sin()"], [f"y *= {gain}"], ["y.neg_()"], ["y[:, 0] = 0.1"], ["F.hardtanh_(y, -1.0, 0.5)"],
        ["y.mul_(-0.5)"], ["y = y + x"], [f"y = {d.add('nn.Dropout2d(0.0, inplace=True)')}(y)"], ["y -= x"], ["z = y", "z *= -1"],
        ["view = y.flatten(1)", "view *= -1"], ["y.data.mul_(1.0)"],
    ))  # fmt: skip
    pool = _pick(d.rng, "F.max_pool2d(y, 2)", "F.max_pool2d(y, 2)", "F.avg_pool2d(y, 2)", f"{d.add('nn.MaxPool2d(2)')}(y)",
                 "F.max_pool2d(y, 2, 2, 1)[:, :, :-1, :-1]", "torch.max_pool2d(y, 2)",
                 "F.max_pool2d(y, 2, return_indices=True)[0]", "F.lp_pool2d(y.exp(), 2, 2)")  # fmt: skip
    d.line(f"x = {pool}", _pick(d.rng, "x = x + y[:, :, ::2, ::2]", "x = x * 1.0", f"x = x * {gain}"))
    d.shape = (d.shape[0], *(-(-side // 2) if "[:, :, :-1" in pool else side // 2 for side in d.shape[1:]))
    return None


def image_views(d: Draw) -> None:
    channels, height, width = d.shape
    d.line(*_pick(
        d.rng,
        ["x = x.permute(0, 2, 3, 1)", f"x = {d.add(f'nn.Linear({channels}, {channels})')}(x)", "x = x.permute(0, 3, 1, 2)"],
        ["x = x.permute(0, 2, 3, 1)", f"x = {d.add(f'nn.LayerNorm({channels})')}(x)", "x = x.permute(0, 3, 1, 2).contiguous()"],
        ["x = x.to(memory_format=torch.channels_last)"], ["x = x.transpose(2, 3)"] if height == width else ["x = x.flip(2)"],
        [f"x = x.view(len(x), {channels}, -1).softmax(-1).view(x.shape)"], ["x = x * x.mean((2, 3), keepdim=True)"],
        ["x = F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1) / 9"],
        [f"x = F.interpolate(x, scale_factor=2)[:, :, :{height}, :{width}]"],
        [f"x = torch.einsum('nchw,cd->ndhw', x, {d.parameter(channels, channels)})"],
        [f"x = F.conv2d(x, {d.parameter(channels, channels, 3, 3)}, padding=1)"],
        [f"x = x.unfold(2, 1, 1)[..., 0] * {d.parameter()}"], ["x = F.pixel_unshuffle(F.interpolate(x, scale_factor=2.0), 2)[:, ::4]"],
        [f"x = x.as_strided(x.shape, x.stride()) + {d.parameter()}"],
        [f"x = x.contiguous().as_strided((len(x), {channels}, {height * width}), x.contiguous().stride()[:2] + (1,)).view(x.shape)"],
    ))  # fmt: skip


def to_vector(d: Draw) -> None:
    channels, height, width = d.shape
    size = d.rng.choice([4, 6])
    lines, count = d.rng.choice([
        (["x = x.mean((2, 3))"], channels), (["x = x.flatten(1)"], channels * height * width),
        (["x = F.adaptive_avg_pool2d(x, 1).flatten(1)"], channels), (["x = x.amax((2, 3))"], channels),
        (["x = F.adaptive_max_pool2d(x, 2).flatten(1)"], 4 * channels), (["x = x.view(len(x), -1)"], channels * height * width),
    ])  # fmt: skip
    d.line(*lines, f"x = {d.add(f'nn.Linear({count}, {size})')}(x)")
    d.shape = (size,)


ANY = [
    one_layer, one_layer, one_layer, residual, in_place, scattered_mask, shared_twice, called_twice, tied, shared_buffer, parametrized,
    learning_buffer, python_attribute, checkpointed, with_hooks, masked_gradient, held_modules, held_parameters, unused, frozen,
    evaluated_dropout, elementwise, views, skipped, nested, functional_linear,
]  # fmt: skip
VECTOR = [wider, gated, to_sequence, functional_batch_norm]
SEQUENCE = [recurrent, recurrent, cells, attention, attention, attention, permuted, permuted]
IMAGE = [convolution, pooled_activation, pooled_activation, pooled_activation, image_views, image_views, to_vector]
