"""Productions for variables of one kind: vectors (d,), sequences (L, d), images (C, H, W); they may change the shape.

In the lines `<…>` registers a layer or a parameter (see `Draw.line`). Shape legend: as in `expressions.py`.
"""

from __future__ import annotations

from fuzz.expressions import ACTIVATIONS, linear
from fuzz.grammar import Draw

# Vectors.


def wider(d: Draw) -> None:
    size = d.rng.choice([4, 6, 8])
    d.line(f"x = <nn.Linear({d.shape[0]}, {size})>(x)")
    d.shape = (size,)


def gated(d: Draw) -> None:
    size = d.shape[0]
    d.line(f"x = {d.rng.choice(['F.glu', '<nn.GLU()>'])}(<nn.Linear({size}, {2 * size})>(x))")


def to_sequence(d: Draw) -> None:
    size = d.shape[0]
    d.one_of(
        f"x = x.view(len(x), 2, {size // 2})",
        f"x = x.unflatten(1, (2, {size // 2}))",
        f"x = x.contiguous().as_strided((len(x), 2, {size // 2}), ({size}, 1, 2))",
    )
    d.line(f"x = <nn.Linear({size // 2}, {size})>(x)")
    d.shape = (2, size)


def functional_batch_norm(d: Draw) -> None:
    if d.batchnorm == "query":
        d.may_refuse = True  # without a layer, no learner knows that it is transductive
        d.line(f"x = F.batch_norm(x, None, None, <w {d.shape[0]}>, None, True)")
    else:
        d.line(f"x = <{linear(d)}>(x)")


# Sequences.


def dropout(d: Draw) -> str:
    """The argument of a layer with dropout inside."""
    if d.rng.random() < 0.7:
        return ", dropout=0.0"
    if d.training:
        d.tag("random")
    return ", dropout=0.2"


def recurrent(d: Draw) -> None:
    length, size = d.shape
    kind, first, wide = d.rng.choice(["RNN", "LSTM", "GRU"]), d.rng.random() < 0.6, d.rng.choice([4, 6])
    options = [", batch_first=True"] if first else []
    for option, probability in (
        (", bidirectional=True", 0.3),
        (", num_layers=2", 0.3),
        (", bias=False", 0.2),
        (", nonlinearity='relu'", 0.3 * (kind == "RNN")),
        (", proj_size=2", 0.1 * (kind == "LSTM")),
    ):
        options += [option] if d.rng.random() < probability else []
    if ", num_layers=2" in options and d.rng.random() < 0.3:
        options += [dropout(d)]
    d.tag(kind)
    hidden = (2 if ", proj_size=2" in options else 3) * (2 if ", bidirectional=True" in options else 1)
    part = f"<nn.{kind}({size}, 3{''.join(options)})>"
    d.line(f"x = {part}(x)[0]" if first else f"x = {part}(x.transpose(0, 1))[0].transpose(0, 1)")
    d.line(f"x = <nn.Linear({hidden}, {wide})>(x)")
    d.shape = (length, wide)


def cells(d: Draw) -> None:
    kind = d.rng.choice(["RNNCell", "GRUCell", "LSTMCell"])
    cell = d.add(f"nn.{kind}({d.shape[1]}, {d.shape[1]})")
    d.tag(kind)
    d.line("state, steps = None, []", "for row in x.unbind(1):", f"    state = {cell}(row, state)")
    d.line(f"    steps.append({'state[0]' if kind == 'LSTMCell' else 'state'})", "x = torch.stack(steps, 1)")


def multihead_attention(d: Draw) -> None:
    length, size = d.shape
    first, weights = d.rng.random() < 0.6, d.rng.choice([True, False])
    mask = f", attn_mask=torch.ones({length}, {length}).triu(1).bool()" if d.rng.random() < 0.3 else ""
    swap = [] if first else ["x = x.transpose(0, 1)"]
    part = f"<nn.MultiheadAttention({size}, 2, batch_first={first}{dropout(d)})>"
    d.line(*swap, f"x = {part}(x, x, x, need_weights={weights}{mask})[0]", *swap)


def functional_attention(d: Draw) -> None:
    size = d.shape[1]
    causal = d.rng.choice(["", ", is_causal=True"])
    d.line(
        f"q, k, v = <nn.Linear({size}, {3 * size})>(x).unflatten(-1, (3, 2, {size // 2})).permute(2, 0, 3, 1, 4)",
        f"x = F.scaled_dot_product_attention(q, k, v{causal}).transpose(1, 2).flatten(2)",
    )


def transformer_layer(d: Draw) -> None:
    name = d.rng.choice(["Encoder", "Encoder", "Decoder"])
    options = f"norm_first={d.rng.choice([True, False])}, activation={d.rng.choice(['relu', 'gelu'])!r}"
    part = f"<nn.Transformer{name}Layer({d.shape[1]}, 2, 6, batch_first=True, {options}{dropout(d)})>"
    d.line(f"x = {part}(x)" if name == "Encoder" else f"x = {part}(x, x.flip(1))")


def permuted(d: Draw) -> None:
    length, size = d.shape
    lines, d.shape = d.rng.choice(
        [
            (["x = x.transpose(1, 2)"], (size, length)),
            (["x = x.movedim(1, 2)", f"x = <nn.Linear({length}, 4)>(x)"], (size, 4)),
            (["x = x.permute(0, 2, 1).contiguous().view(x.shape)"], d.shape),
            (["x = F.max_pool1d(x, 2)", f"x = <nn.Linear({size // 2}, 4)>(x)"], (length, 4)),
            (["x = F.adaptive_avg_pool1d(x, 4)"], (length, 4)),
            (["x = torch.einsum('nld,nmd->nlm', x, x)", f"x = <nn.Linear({length}, 4)>(x)"], (length, 4)),
            (["x = torch.bmm(x, x.mT).softmax(-1) @ x"], d.shape),
            (["x = x.unfold(2, 2, 2).flatten(2)"], d.shape),
        ]
    )
    d.line(*lines)
    if d.shape[1] % 2:
        d.line(f"x = <nn.Linear({d.shape[1]}, 4)>(x)")
        d.shape = (d.shape[0], 4)


# Images.


def convolution(d: Draw) -> None:
    channels = d.rng.choice([2, 3, 4])
    d.line(f"x = <nn.Conv2d({d.shape[0]}, {channels}, 3, padding=1)>(x)")
    d.shape = (channels, *d.shape[1:])


POOLINGS = [
    "F.max_pool2d(y, 2)", "F.max_pool2d(y, 2)", "<nn.MaxPool2d(2)>(y)", "torch.max_pool2d(y, 2)", "F.avg_pool2d(y, 2)",
    "F.max_pool2d(y, 2, return_indices=True)[0]", "F.lp_pool2d(y.exp(), 2, 2)", "F.max_pool2d(y, 3, 2, 1)",
]  # fmt: skip


def pooled_activation(d: Draw) -> None:
    """A pooling after an activation, with or without work in between."""
    if d.shape[1] < 4:
        return d.line(f"x = <{linear(d)}>(x)")
    names = ["F.relu(x)", "torch.relu(x)", "F.leaky_relu(x)", "F.leaky_relu(x, -0.4)", "F.leaky_relu(x, 0.3)"]
    d.line(f"y = {d.rng.choice([*names, 'F.gelu(x)', f'<{d.rng.choice(ACTIVATIONS)}>(x)'])}")
    d.one_of(
        [],
        "y += 0.3 * x.sin()",
        "y = y * <w>",
        "y *= <w>",
        "y.neg_()",
        "y[:, 0] = 0.1",
        "F.hardtanh_(y, -1.0, 0.5)",
        "y.mul_(-0.5)",
        "y = y + x",
        "y = <nn.Dropout2d(0.0, inplace=True)>(y)",
        "y -= x",
        ["z = y", "z *= -1"],
        ["view = y.flatten(1)", "view *= -1"],
        "y.data.mul_(1.0)",
    )
    d.line(f"x = {d.rng.choice(POOLINGS)}")
    d.one_of("x = x + y[:, :, ::2, ::2]", "x = x * 1.0", "x = x * <w>")
    d.shape = (d.shape[0], *(side // 2 for side in d.shape[1:]))
    return None


def image_views(d: Draw) -> None:
    channels, height, width = d.shape
    d.one_of(
        ["x = x.permute(0, 2, 3, 1)", f"x = <nn.Linear({channels}, {channels})>(x)", "x = x.permute(0, 3, 1, 2)"],
        ["x = x.permute(0, 2, 3, 1)", f"x = <nn.LayerNorm({channels})>(x).permute(0, 3, 1, 2).contiguous()"],
        "x = x.to(memory_format=torch.channels_last)",
        "x = x.transpose(2, 3)" if height == width else "x = x.flip(2)",
        f"x = x.view(len(x), {channels}, -1).softmax(-1).view(x.shape)",
        "x = x * x.mean((2, 3), keepdim=True)",
        "x = F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1) / 9",
        f"x = F.interpolate(x, scale_factor=2)[:, :, :{height}, :{width}]",
        f"x = torch.einsum('nchw,cd->ndhw', x, <w {channels} {channels}>)",
        f"x = F.conv2d(x, <w {channels} {channels} 3 3>, padding=1)",
        "x = x.unfold(2, 1, 1)[..., 0] * <w>",
        "x = F.pixel_unshuffle(F.interpolate(x, scale_factor=2.0), 2)[:, ::4]",
        "x = x.as_strided(x.shape, x.stride()) + <w>",
        f"x = x.contiguous().as_strided((len(x), {channels}, {height * width}), x.contiguous().stride()[:2] + (1,))"
        ".view(x.shape)",
    )


def to_vector(d: Draw) -> None:
    channels, height, width = d.shape
    size, all_values = d.rng.choice([4, 6]), channels * height * width
    pooled, count = d.rng.choice(
        [
            ("x.mean((2, 3))", channels),
            ("x.amax((2, 3))", channels),
            ("F.adaptive_avg_pool2d(x, 1).flatten(1)", channels),
            ("F.adaptive_max_pool2d(x, 2).flatten(1)", 4 * channels),
            ("x.flatten(1)", all_values),
            ("x.view(len(x), -1)", all_values),
        ]
    )
    d.line(f"x = <nn.Linear({count}, {size})>({pooled})")
    d.shape = (size,)


ATTENTION = [multihead_attention, functional_attention, transformer_layer]
VECTOR = [wider, gated, to_sequence, functional_batch_norm]
SEQUENCE = [recurrent, recurrent, cells, permuted, permuted, *ATTENTION]
IMAGE = [convolution, pooled_activation, pooled_activation, pooled_activation, image_views, image_views, to_vector]
