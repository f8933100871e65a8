"""Productions for variables of any shape: each appends statements to a class that is being drawn, and keeps the shape.

In the lines `<…>` registers a layer or a parameter (see `Draw.line`). Shape legend: as in `expressions.py`.
"""

from __future__ import annotations

from fuzz.expressions import activation, block, layer, linear, norm, random_layer
from fuzz.grammar import OUTPUTS, Draw
from fuzz.shaped import IMAGE, SEQUENCE, VECTOR


def statement(d: Draw) -> None:
    """A statement of a random production, which its tag names."""
    production = d.rng.choice([*ANY] * 2 + {1: VECTOR, 2: SEQUENCE, 3: [*IMAGE, scattered_mask]}[len(d.shape)] * 4)
    d.tag(production.__name__)
    production(d)


def head(d: Draw) -> None:
    """Flatten, and a linear head; sometimes after a mean over positions."""
    size = 1
    if len(d.shape) == 2 and d.rng.random() < 0.5:
        d.line("x = x.mean(1)")
        d.shape = d.shape[1:]
    for length in d.shape:
        size *= length
    d.init.append(f"self.head = nn.Linear({size}, {OUTPUTS})")
    d.line("x = self.head(x.flatten(1))")


def one_layer(d: Draw) -> None:
    d.line(f"x = <{layer(d)}>(x)")


def residual(d: Draw) -> None:
    part = f"<{block(d)}>"
    d.one_of(
        f"x = x + {part}(x)",
        [f"y = {part}(x)", "y += x", "x = y"],
        f"x = torch.add(x, {part}(x), alpha=0.5)",
        [f"y = {part}(x).clone()", "y.add_(x, alpha=0.5)", "x = y"],
    )


def in_place(d: Draw) -> None:
    """In-place operations on x and on its views."""
    d.one_of(
        ["y = x.clone()", "y.view(len(y), -1)[:, 0] = 0", "x = y + x.mean()"],
        ["y = x.clone()", "y[:, 0] *= 2", "x = y"],
        ["x = x * 1.5", "F.relu_(x)"],
        "x = F.leaky_relu_(x + 0.1, -0.3)",
        ["y = torch.tanh(x)", "x = y.clone().mul_(x).add_(0.1)"],
        ["x = x + 0", "x[:, -1:].relu_()"],
        ["x = x + 0", "x.select(1, 0).copy_(x.select(1, -1).sin())"],
        ["x = x.clone()", "x[:, 0].zero_()"],
        ["x = x.clone()", "x.index_put_((torch.arange(len(x)), torch.zeros(len(x)).long()), x[:, -1].sin())"],
        "x = x.index_fill(1, torch.tensor([0]), 0.3)",
        "x = x.index_add(1, torch.tensor([0]), x[:, -1:].cos())",
        "x = x.masked_fill(x > 0.8, 0.1)",
        "x = torch.where(x > 0, x, 0.3 * x)",
        ["y = torch.zeros_like(x)", "y[:, :1] = x[:, :1].sin()", "x = x + y"],
        ["y = torch.empty_like(x)", "y.copy_(x)", "y.exp_()", "x = 0.3 * y"],
        ["y = x.new_zeros(x.shape)", "y[:] = x", "x = y.tanh_()"],
        ["x = x.clone()", "x.clamp_(-1, 1)"],
    )


def scattered_mask(d: Draw) -> None:
    """A mask that scatter_ writes into a view."""
    d.one_of("mask = torch.zeros_like(x)", "mask = x.new_zeros(x.shape)", "mask = torch.zeros_like(x) * x")
    d.line("flat = mask.view(len(x), -1)", "index = (torch.arange(len(x))[:, None] + torch.arange(3)) % flat.shape[1]")
    d.one_of("flat.scatter_(1, index, 1.0)", "flat.scatter_(1, index, x.reshape(len(x), -1)[:, :3])")
    d.one_of("x = x * mask", "x = x + mask", "x = x * (1 - mask)")


def shared_twice(d: Draw) -> None:
    """One module registered twice, in a Sequential or under two names."""
    shared = d.add(d.rng.choice([linear, norm, lambda d: "nn.PReLU()"])(d))
    d.one_of(
        f"x = <nn.Sequential({shared}, {activation(d)}, {shared})>(x)",
        [f"x = {shared}(x)", f"x = <{shared}>(x.tanh())"],
        [f"x = {shared}(x)", f"x = <Twice({shared})>(x)"],
        [f"for part in <nn.ModuleList([{shared}, {linear(d)}, {shared}])>:", "    x = torch.tanh(part(x))"],
    )


def called_twice(d: Draw) -> None:
    part = d.add(d.rng.choice([linear, norm, block])(d))
    d.line(f"x = {part}(torch.tanh({part}(x)))")


def tied(d: Draw) -> None:
    first, second = (d.add(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})") for _ in range(2))
    d.init.append(f"{second}.weight = {first}.weight")
    if d.rng.random() < 0.3:
        d.init.append(f"{second}.bias = {first}.bias")
    d.line(f"x = {second}(torch.tanh({first}(x)))")


def shared_buffer(d: Draw) -> None:
    kind, factor = d.rng.choice(["Multiply", "CountingMultiply"]), d.name("factor")
    if kind == "CountingMultiply":
        d.tag("stateful")
    d.init.append(f"{factor} = torch.tensor(0.9)")
    first, second = d.add(f"{kind}({factor})"), d.add(f"Multiply({factor})")
    d.line(f"x = {second}(torch.tanh({first}(x)))")


PARAMETRIZATIONS = {
    "weight_norm": ["parametrizations.weight_norm({})"],
    "orthogonal": ["parametrizations.orthogonal({}, orthogonal_map='cayley')"],
    "matrix_exp": ["parametrizations.orthogonal({}, orthogonal_map='matrix_exp')"],
    "spectral_norm": ["parametrizations.spectral_norm({})"],
    "symmetric": ["parametrize.register_parametrization({}, 'weight', Symmetric())"],
    "old weight_norm": ["torch.nn.utils.weight_norm({})"],
    "old spectral_norm": ["torch.nn.utils.spectral_norm({})"],
    "two": [
        "parametrize.register_parametrization({}, 'weight', Symmetric())",
        "parametrize.register_parametrization({}, 'weight', Gain())",
        "parametrize.register_parametrization({}, 'bias', Gain())",
    ],
}


def parametrized(d: Draw) -> None:
    part, kind = d.add(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})"), d.rng.choice(list(PARAMETRIZATIONS))
    d.init += [line.format(part) for line in PARAMETRIZATIONS[kind]]
    d.tag(kind)
    if "spectral" in kind and d.training:
        d.tag("stateful", "detached")
    d.line(f"x = {part}(x)")


def learning_buffer(d: Draw) -> None:
    kind = d.rng.choice(["Counter", "AssignedCounter", "LongCounter", "MovingAverage", "AssignedAverage"])
    d.tag(kind, "stateful")
    if "Average" in kind:
        d.tag("detached")
    d.line(f"x = <{kind}({str(d.shape)[1:-1] if 'Average' in kind else ''})>(x)")


def python_attribute(d: Draw) -> None:
    kind = d.rng.choice(["Calls", "Alternating", "Remembering", "Saving"])
    d.tag(kind)
    if kind != "Saving":
        d.tag("stateful")
        d.may_refuse = True  # only buffers go from step to step
    if kind == "Remembering":
        d.tag("detached")
    d.line(f"x = <{kind}()>(x)")


def checkpointed(d: Draw) -> None:
    part, size = d.add(block(d)), d.shape[-1]
    functions = [
        f"F.group_norm(h, 1, <w {d.shape[0]}>)",
        f"F.layer_norm(h, ({size},), <w {size}>)",
        f"F.linear(h, torch._weight_norm(<w {size} {size}>, <w {size} 1>))",
        f"{part}(F.rrelu(h, 0.2, 0.2, True))",
        "F.rrelu(h, 0.3, 0.3, True)",
        "F.scaled_dot_product_attention(h, h * <w>, h)" if len(d.shape) > 1 else "F.normalize(h, dim=1) * <w>",
    ]
    d.one_of(
        f"x = torch.utils.checkpoint.checkpoint({part}, x, use_reentrant=False)",
        f"x = torch.utils.checkpoint.checkpoint(lambda h: {part}(h) * <w>, x, use_reentrant=False)",
        f"x = torch.utils.checkpoint.checkpoint_sequential({part}, 2, x, use_reentrant=False)",
        f"x = x + torch.utils.checkpoint.checkpoint({part}, x * <w>, use_reentrant=False)",
        f"x = torch.utils.checkpoint.checkpoint(lambda h: {d.rng.choice(functions)}, x, use_reentrant=False)",
        f"x = torch.utils.checkpoint.checkpoint(lambda h: {d.rng.choice(functions)}, x, use_reentrant=False)",
    )


def random_numbers(d: Draw) -> None:
    """Layers and functions that draw random numbers, half of them where a backward pass repeats them."""
    noise = [
        "F.rrelu(h, 0.1, 0.9, self.training)",
        "torch.rrelu(h, 0.1, 0.9, self.training)",
        "F.dropout(h, 0.3, self.training)",
        "F.rrelu_(h * 1.0, 0.2, 0.2, self.training)",
        "h + 0.1 * torch.randn_like(h)",
        "h * torch.bernoulli(torch.full_like(h, 0.7))",
        "h * (torch.rand(len(h), *[1] * (h.ndim - 1)) < 0.7)",
        "h * F.gumbel_softmax(h, dim=-1)",
    ]
    if d.rng.random() < 0.5:
        part = f"<nn.Sequential({linear(d)}, {random_layer(d)})>"
    else:
        d.tag("random")
        part = f"(lambda h: {d.rng.choice(noise)})"
    d.one_of(f"x = {part}(x)", f"x = torch.utils.checkpoint.checkpoint({part}, x, use_reentrant=False)")


def with_hooks(d: Draw) -> None:
    part, gain = d.rng.choice([block, linear])(d), d.add("Gain()")
    hook = d.rng.choice(
        [
            "forward=lambda module, args, output: output * 1.3",
            f"forward=lambda module, args, output: {gain}(output)",
            "pre=lambda module, args: (torch.tanh(args[0]),)",
            f"pre=lambda module, args: (args[0] + {gain}.gain,)",
            "backward=lambda module, grad_input, grad_output: None",
            "forward=lambda module, args, output: setattr(module, 'seen', output)",
        ]
    )
    d.line(f"x = <hooked({part}, {hook})>(x)")


def masked_gradient(d: Draw) -> None:
    part = d.add(f"nn.Linear({d.shape[-1]}, {d.shape[-1]})")
    d.init.append(f"masked({part}.weight)")
    d.line(f"x = {part}(x)")


def held_modules(d: Draw) -> None:
    """Submodules that Python attributes reach: bound methods, lists, dicts, partials, closures."""
    part, held = d.add(linear(d)), f"self.{d.name('held')}"
    made, used = d.rng.choice(
        [
            (f"{part}.forward", f"{held}(x)"),
            (f"[{part}, torch.tanh]", f"{held}[1]({held}[0](x))"),
            (f"{{'layer': {part}}}", f"{held}['layer'](x)"),
            (f"partial({part}.forward)", f"{held}(x)"),
            (f"lambda h: {part}(h)", f"{held}(x)"),
            (f"partial(lambda h, scale: {part}(h) * scale, scale=0.7)", f"{held}(x)"),
            (f"({part}, 2.0)", f"{held}[0](x) * {held}[1]"),
            (f"[{{'deep': ({part}.__call__,)}}]", f"{held}[0]['deep'][0](x)"),
        ]
    )
    d.init.append(f"{held} = {made}")
    d.line(f"x = {used}")


def held_parameters(d: Draw) -> None:
    """Parameters that Python attributes hold beside the registration: right, or refused."""
    d.may_refuse = True
    size, held = d.shape[-1], f"self.{d.name('held')}"
    weight = d.add(f"nn.Parameter(0.5 * torch.randn({size}, {size}))", "w")
    made, used = d.rng.choice(
        [
            (f"[{weight}]", f"F.linear(x, {held}[0])"),
            (f"partial(F.linear, weight={weight})", f"{held}(x)"),
            (f"lambda h, w={weight}: F.linear(h, w)", f"{held}(x)"),
            (f"{{'w': {weight}}}", f"x @ {held}['w']"),
        ]
    )
    d.init.append(f"{held} = {made}")
    d.line(f"x = {used}")


def unused(d: Draw) -> None:
    """Parameters that nothing uses, of which only the query's prediction depends, or whose result is dropped."""
    part = d.add(linear(d))
    d.add("nn.Parameter(torch.ones(2))", "w")
    d.one_of([], f"{part}(x)", f"x = x if len(x) > 5 else x + {part}(x)", f"x = x if len(x) > 5 else x + {part}(x)")


def frozen(d: Draw) -> None:
    part = d.add(block(d))
    d.init.append(f"{part}{d.rng.choice(['', '[0].weight'])}.requires_grad_(False)")
    d.line(f"x = {part}(x)")


def without_dropout(d: Draw) -> None:
    """Dropout that drops nothing: of rate 0, or in evaluation mode."""
    d.one_of(*[f"x = <nn.{kind}({0.0 if d.training else 0.5})>(x * 1.0)" for kind in ("Dropout", "AlphaDropout")])
    d.one_of("x = F.dropout(x, 0.5, False)", "x = F.dropout(x * 1.0, 0.0, self.training, inplace=True)")


def elementwise(d: Draw) -> None:
    gain = f"<w {d.shape[-1]}>"
    d.one_of(
        f"x = x * {gain}",
        f"x = x * {gain}.exp()",
        f"x = torch.addcmul(x, x, {gain})",
        f"x = torch.lerp(x, x.sin(), {gain})",
        "x = x / (1 + x.abs())",
        "x = x.softmax(-1) * x",
        "x = F.normalize(x, dim=-1)",
        "x = x - x.mean(-1, keepdim=True)",
        "x = torch.logaddexp(x, -x)",
        "x = x.cumsum(1)",
        "x = x.double() + x.to(torch.float64).sin()",
        "x = x * x.std(-1, keepdim=True)",
        f"x = torch.nan_to_num(x) * {gain}",
        "x = x.amax(-1, keepdim=True) - x",
    )


def views(d: Draw) -> None:
    d.one_of(
        "x = x.flip(1)",
        "x = x.roll(1, 1)",
        "x = torch.cat(x.chunk(2, -1)[::-1], -1)",
        "x = torch.stack([x, x.sin()]).mean(0)",
        "x = torch.cat([part.tanh() for part in x.split(1, 1)], 1)",
        "x = torch.stack(x.unbind(1), 1)",
        "x = x.flatten(1).unflatten(1, x.shape[1:])",
        "x = x.reshape(len(x), -1).view(x.shape)",
        "x = x.contiguous().as_strided(x.shape, x.contiguous().stride())",
        "x = x[:, torch.arange(x.shape[1] - 1, -1, -1)]",
        "x = x.expand(2, *x.shape).sum(0)",
        ["x = x.contiguous()", "x = x.as_strided(x.shape, x.stride()) * <w>"],
        "x = x.unsqueeze(-1).squeeze(-1)",
        "x = F.pad(x, (1, 0))[..., :-1]",
        "x = x.transpose(0, -1).transpose(0, -1)",
        "x = x.gather(-1, torch.zeros(x.shape, dtype=torch.long)) + x",
        "x = x.sort(-1).values",
        "x = x.diff(dim=-1, prepend=x[..., :1])",
        "x = x.take_along_dim(x.argsort(-1), -1)",
        ["x = x.unfold(-1, 2, 1).mean(-1)", "x = F.pad(x, (0, 1))"],
    )


def skipped(d: Draw) -> None:
    """A norm that the query skips, before another."""
    batch_norm = f"nn.BatchNorm{max(len(d.shape) - 1, 1)}d({d.shape[0]})"
    first, second = (batch_norm, batch_norm) if d.rng.random() < 0.6 else (norm(d), norm(d))
    d.line(f"x = <Long({first}, {second})>(x)")


def nested(d: Draw) -> None:
    d.line(f"x = <nn.Sequential({block(d)}, {block(d)})>(x)")


def functional_linear(d: Draw) -> None:
    size = d.shape[-1]
    part, weight = d.add(f"nn.Linear({size}, {size})"), f"<w {size} {size}>"
    d.one_of(
        f"x = F.linear({part}(x).tanh(), {part}.weight)",
        f"x = F.linear(x, {weight}, {part}.bias)",
        f"x = torch.einsum('n...i,ij->n...j', x, {weight})",
        f"x = x @ {weight}.T",
        f"x = F.layer_norm({part}(x), ({size},), <w {size}>, <w {size}>)",
        f"x = torch.layer_norm(x, ({size},), <w {size}>)",
        f"x = torch.tensordot(x, {weight}, 1)",
        f"x = F.rms_norm(x, ({size},), <w {size}>)",
        [f"w = {weight}", "x = F.linear(x, w - w.T)"],
        "x = F.prelu(x, <w 1>)",
        f"x = F.linear(x, F.normalize({weight}, dim=1))",
        f"x = torch.func.functional_call({part}, {{'weight': {weight}}}, (x,))",
    )


ANY = [
    one_layer, one_layer, one_layer, residual, in_place, scattered_mask, shared_twice, called_twice, tied, views,
    shared_buffer, parametrized, learning_buffer, python_attribute, checkpointed, random_numbers, with_hooks,
    masked_gradient, nested, held_modules, held_parameters, unused, frozen, without_dropout, elementwise, skipped,
    functional_linear,
]  # fmt: skip
