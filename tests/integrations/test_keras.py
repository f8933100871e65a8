"""A Keras model trains and adapts as the same network in PyTorch, or is refused."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot.integrations.keras import as_module, export_keras
from kshot.testing import learner_checks
from kshot.training.step import meta_gradient
from kshot.types import stack

keras = pytest.importorskip("keras")
dtypes = pytest.importorskip("keras.src.backend.common.dtypes")
layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # NumPy's, of Keras


@pytest.fixture(params=["float64"])
def dtype(request, monkeypatch):
    """The dtype of both networks. Keras computes float64 in float32 unless one of its tables is changed."""
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_dtype(torch.float32)
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")


@pytest.fixture(autouse=True)
def _seeds():
    keras.utils.set_random_seed(0)


in_float32 = pytest.mark.parametrize("dtype", ["float32"], indirect=True)


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


class Steps(nn.Module):
    """A recurrent network of PyTorch whose output is that of the last step."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        network.bias_hh_l0.requires_grad_(isinstance(network, nn.GRU))
        nn.init.zeros_(network.bias_hh_l0)

    def forward(self, x):
        return self.network(x)[0][:, -1]


IMAGES, ROWS, WORDS, SERIES = (1, 6, 6), (4,), (5,), (5, 3)


def matrix(kernel):
    return kernel.mT


def convolution(kernel):
    return kernel.permute(3, 2, 0, 1)


def same(value):
    return value


def gru(value):  # Keras has the gates z, r, h, and PyTorch r, z, n
    z, r, h = value.mT.chunk(3) if value.ndim == 2 else value.chunk(3)
    return torch.cat([r, z, h])


DENSE = {"weight": ("kernel", matrix), "bias": ("bias", same)}
CONV = {"weight": ("kernel", convolution), "bias": ("bias", same)}
NORM = {"weight": ("weight", same), "bias": ("bias", same)}
LAYER_NORM = {"weight": ("gamma", same), "bias": ("beta", same)}
LSTM = {
    "network.weight_ih_l0": ("lstm_cell.kernel", matrix),
    "network.weight_hh_l0": ("lstm_cell.recurrent_kernel", matrix),
    "network.bias_ih_l0": ("lstm_cell.bias", same),
}
GRU = {
    "network.weight_ih_l0": ("gru_cell.kernel", gru),
    "network.weight_hh_l0": ("gru_cell.recurrent_kernel", gru),
    "network.bias_ih_l0": ("gru_cell.bias", lambda bias: gru(bias[0])),
    "network.bias_hh_l0": ("gru_cell.bias", lambda bias: gru(bias[1])),
}
NETWORKS = {
    "dense": (
        ROWS,
        lambda: [layers.Dense(7, activation="tanh"), layers.Dense(3)],
        lambda: [nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)],
        {"0": ("dense", DENSE), "2": ("dense_1", DENSE)},
    ),
    "convolution": (
        IMAGES,
        lambda: [layers.Conv2D(2, 3, activation="tanh"), layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(3)],
        lambda: [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), ChannelsLast(), nn.Flatten(), nn.Linear(8, 3)],
        {"0": ("conv2d", CONV), "5": ("dense", DENSE)},
    ),
    "layer norm": (
        ROWS,
        lambda: [layers.Dense(7), layers.LayerNormalization(), layers.Activation("gelu"), layers.Dense(3)],
        lambda: [nn.Linear(4, 7), nn.LayerNorm(7, 1e-3), nn.GELU(), nn.Linear(7, 3)],
        {"0": ("dense", DENSE), "1": ("layer_normalization", LAYER_NORM), "3": ("dense_1", DENSE)},
    ),
    "batch norm of images": (
        IMAGES,
        lambda: [layers.Conv2D(2, 3), layers.BatchNormalization(), layers.GlobalAveragePooling2D(), layers.Dense(3)],
        lambda: [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, 1e-3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)],
        {"0": ("conv2d", CONV), "1": ("batch_normalization", NORM), "4": ("dense", DENSE)},
    ),
    "batch norm of rows": (
        ROWS,
        lambda: [layers.Dense(7), layers.BatchNormalization(), layers.Activation("tanh"), layers.Dense(3)],
        lambda: [nn.Linear(4, 7), nn.BatchNorm1d(7, 1e-3), nn.Tanh(), nn.Linear(7, 3)],
        {"0": ("dense", DENSE), "1": ("batch_normalization", NORM), "3": ("dense_1", DENSE)},
    ),
    "dropout": (
        ROWS,
        lambda: [layers.Dense(7, activation="tanh"), layers.Dropout(0.3), layers.Dense(3)],
        lambda: [nn.Linear(4, 7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, 3)],
        {"0": ("dense", DENSE), "3": ("dense_1", DENSE)},
    ),
    "embedding": (
        WORDS,
        lambda: [layers.Embedding(9, 4), layers.Flatten(), layers.Dense(3)],
        lambda: [nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3)],
        {"0": ("embedding", {"weight": ("embeddings", same)}), "2": ("dense", DENSE)},
    ),
    "lstm": (
        SERIES,
        lambda: [layers.LSTM(4), layers.Dense(3)],
        lambda: [Steps(nn.LSTM(3, 4, batch_first=True)), nn.Linear(4, 3)],
        {"0": ("lstm", LSTM), "1": ("dense", DENSE)},
    ),
    "gru": (
        SERIES,
        lambda: [layers.GRU(4), layers.Dense(3)],
        lambda: [Steps(nn.GRU(3, 4, batch_first=True)), nn.Linear(4, 3)],
        {"0": ("gru", GRU), "1": ("dense", DENSE)},
    ),
}


class Twins:
    """A network in Keras and in PyTorch, with the same weights."""

    def __init__(self, name, head=True):
        self.shape, of_keras, of_torch, parts = NETWORKS[name]
        shape = (*self.shape[1:], 1) if self.shape == IMAGES else self.shape
        self.keras_model = keras.Sequential([keras.Input(shape), *of_keras()])
        for weight in self.keras_model.trainable_variables:
            weight.assign_add(0.3 * torch.randn(*weight.shape))
        self.of_keras = as_module(self.keras_model, channels="first" if self.shape == IMAGES else None)
        self.of_torch = nn.Sequential(*of_torch())
        self.pairs = {
            f"{theirs}.{weight}": (f"{ours}.{name}", convert)
            for theirs, (ours, weights) in parts.items()
            for weight, (name, convert) in weights.items()
        }
        self.of_torch.load_state_dict(self.converted(dict(self.of_keras.named_parameters())), strict=False)

    def converted(self, values):
        return {name: convert(values[ours]).detach() for name, (ours, convert) in self.pairs.items()}

    def task(self, ways=3, padded=False):
        def batch(rows):
            inputs = torch.randint(9, (rows, *WORDS)) if self.shape == WORDS else torch.randn(rows, *self.shape)
            weight = torch.tensor([1.0] * (rows - 2) + [0.5, 0.0]) if padded else None
            return kshot.Batch.of(inputs, torch.arange(rows) % ways, ways=ways, weight=weight)

        return kshot.Task(batch(6), batch(9))

    def gap(self, learner, mode="loop", **options):
        """The largest differences in loss, meta-gradient and prediction between both, as a learner uses them."""
        both = [learner(module, **options) for module in (self.of_torch, self.of_keras)]
        tasks = [self.task(), self.task()] if mode == "vmap" else [self.task(padded=True), self.task(padded=True)]
        results = []
        for each in both:
            torch.manual_seed(1)
            loss = meta_gradient(each, stack(tasks), mode)
            torch.manual_seed(1)
            prediction = each.predict(each.adapt(tasks[0].support), tasks[0].query.inputs)
            results.append((loss, prediction))
        (expected, prediction), (loss, ours) = results
        grads = {name: p.grad for name, p in self.of_keras.named_parameters()}
        gaps = [loss - expected, ours - prediction]
        for name, grad in self.converted(grads).items():
            gaps.append(grad - self.of_torch.get_parameter(name).grad)
            assert name.endswith("bias") or grad.abs().max() > 1e-4
        return max(float(gap.detach().abs().max()) for gap in gaps)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("name", NETWORKS)
def test_second_order_meta_gradients_are_those_of_the_network_in_torch(name, mode, dtype):
    twins = Twins(name)
    gap = twins.gap(kshot.maml, mode, inner_lr=0.3, steps=2)
    assert gap < 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_prototypes_are_those_of_the_network_in_torch(name, dtype):
    gap = Twins(name).gap(kshot.protonet)
    assert gap < 1e-10


@pytest.mark.parametrize("batchnorm", ["query", "running", "tasknorm"])
def test_a_learner_chooses_the_statistics_of_batch_norm(batchnorm, dtype):
    twins = Twins("batch norm of images")
    assert twins.gap(kshot.maml, inner_lr=0.3, steps=2, batchnorm=batchnorm) < 1e-10
    learner = kshot.maml(twins.of_keras, inner_lr=0.3, batchnorm=batchnorm)
    assert learner.transductive == (batchnorm == "query")


@in_float32
@pytest.mark.parametrize("name", ["convolution", "layer norm", "gru"])
def test_in_float32_the_difference_is_rounding(name, dtype):
    assert Twins(name).gap(kshot.maml, inner_lr=0.3, steps=2) < 1e-5


def convolutional(ways):
    """Smooth, for images (n, 1, 8, 8)."""
    parts = [layers.Conv2D(3, 3, strides=2, activation="softplus"), layers.BatchNormalization(), layers.Flatten()]
    return as_module(keras.Sequential([keras.Input((8, 8, 1)), *parts, layers.Dense(ways)]), channels="first")


CHECKS = list(learner_checks(lambda ways: kshot.maml(convolutional(ways), inner_lr=0.05, steps=2)))


@pytest.mark.parametrize(("name", "check"), CHECKS, ids=[name for name, _ in CHECKS])
def test_the_contract_of_learners_holds(name, check, dtype):
    check()


TENSORFLOW = os.environ.get("KSHOT_TENSORFLOW_PYTHON", "")
needs_tensorflow = pytest.mark.skipif(
    not TENSORFLOW,
    reason="KSHOT_TENSORFLOW_PYTHON is not set to a Python with tensorflow and keras; see CONTRIBUTING.md",
)
EXAMPLES = Path(__file__).parents[2] / "examples"


@needs_tensorflow
def test_tensorflow_predicts_and_adapts_the_same(tmp_path):
    made = {name: Twins(name) for name in ("batch norm of images", "gru")}
    learners, tasks, calls = {}, {name: twins.task() for name, twins in made.items()}, []
    for name, twins in made.items():
        learner = learners[name] = kshot.learners.meta_sgd(twins.of_keras, inner_lr=0.1, steps=3)
        with torch.no_grad():
            for rate in learner.solver.rule.parameters():
                rate.mul_(torch.empty_like(rate).uniform_(0.5, 2))
        files = [str(tmp_path / f"{name} {part}") for part in ("model.keras", "task.npz", "predictions.npz")]
        export_keras(learner, files[0])
        last = 1 if twins.shape == IMAGES else -1  # the axis that is the last one in Keras
        support, queries = tasks[name].support, tasks[name].query.inputs
        inputs, queries = support.inputs.movedim(last, -1), queries.movedim(last, -1)
        np.savez(files[1], inputs=inputs, targets=support.targets, queries=queries)
        calls.append(files)
    environment = {name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", "PYTHONPATH")}
    script = f"import adapt_in_tensorflow as example\nfor files in {calls}: example.main(*files)"
    ran = subprocess.run([TENSORFLOW, "-c", script], cwd=EXAMPLES, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    for files, (name, twins) in zip(calls, made.items()):
        learner, queries = learners[name].eval(), tasks[name].query.inputs
        state = learner.adapt(tasks[name].support)
        with np.load(files[2]) as theirs:
            weights = {id(v): torch.tensor(theirs[f"arr_{i}"]) for i, v in enumerate(twins.keras_model.weights)}
            gaps = {"before": torch.tensor(theirs["before"]) - twins.of_keras(queries)}
            gaps["after"] = torch.tensor(theirs["after"]) - learner.predict(state, queries)
        initial = dict(twins.of_keras.named_parameters())
        for variable, weight in twins.of_keras.structure.variables:
            if weight in initial:
                gaps[weight] = weights[id(variable)] - state["params"][weight]
                assert weight.endswith("bias") or (weights[id(variable)] - initial[weight]).abs().max() > 1e-3
        assert max(float(gap.detach().abs().max()) for gap in gaps.values()) < 1e-5
