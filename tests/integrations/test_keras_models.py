"""Keras models that learners take, those that are refused, and files for Keras."""

import copy
import importlib.util
import pickle
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import kshot
from kshot.app.export import export_run
from kshot.app.run import run
from kshot.app.spec import load_spec
from kshot.files import read_json
from kshot.integrations.keras import as_module, export_keras
from kshot.integrations.keras.backend import import_keras
from kshot.training.step import meta_gradient
from kshot.types import stack

keras = pytest.importorskip("keras")
layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # NumPy's, of Keras


@pytest.fixture(autouse=True)
def _seeds():
    keras.utils.set_random_seed(0)


def small(*parts, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *parts])


def batch(rows=6, shape=(4,), ways=3):
    return kshot.Batch.of(torch.randn(rows, *shape), torch.arange(rows) % ways, ways=ways)


def two_tasks(shape=(4,)):
    return stack([kshot.Task(batch(shape=shape), batch(shape=shape)) for _ in range(2)])


def test_outside_of_learners_it_is_the_keras_model():
    model = small(layers.Dense(8), layers.BatchNormalization(), layers.Dense(3))
    module, inputs = as_module(model), torch.randn(9, 4)
    assert torch.equal(module.eval()(inputs), model(inputs))
    module.train()(inputs)
    moved = model.layers[1].moving_mean.numpy()
    model.layers[1].moving_mean.assign(torch.zeros(8))
    model.layers[1].moving_variance.assign(torch.ones(8))
    model(inputs, training=True)
    assert np.array_equal(model.layers[1].moving_mean.numpy(), moved)
    assert moved.any()


def test_training_trains_the_keras_model_and_a_copy_has_weights_of_its_own():
    model = small(layers.Dense(8, activation="tanh"), layers.Dense(1), shape=(1,))
    learner = kshot.maml(as_module(model), inner_lr=0.05, objective=kshot.objectives.mse)
    copied, before = copy.deepcopy(learner), model.layers[0].kernel.numpy().copy()
    tasks = kshot.sources.sinusoids(shots=5)
    kshot.fit(learner, tasks, steps=3, tasks_per_step=2)
    assert not np.allclose(model.layers[0].kernel.numpy(), before)
    assert np.array_equal(copied.model.get_parameter("dense.kernel").detach(), before)
    support = tasks.task("test", 0).support
    adapted = [each.adapt(support)["params"]["dense.kernel"] for each in (learner, copied)]
    assert not torch.allclose(*adapted)
    kshot.evaluate(learner, tasks, num_tasks=3)  # and the audits trust it
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(learner)
    with pytest.raises(TypeError, match="dtype of the Keras model 'sequential"):
        learner.double()


class Composed(keras.Model):
    """A subclass with a weight of its own, a layer for random numbers, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.body, self.drop, self.out = layers.Dense(5, activation="tanh"), layers.GaussianNoise(0.1), layers.Dense(3)
        self.body.trainable = False

    def build(self, shape):
        self.scale = self.add_weight(shape=(3,), initializer="ones", name="scale")
        super().build(shape)

    def call(self, inputs, training=False):
        return self.out(self.drop(self.body(inputs), training=training)) * self.scale


def built(model):
    model(torch.zeros(2, 4))
    return model


def test_names_are_those_of_the_model_alone_and_frozen_weights_stay():
    first, second = (as_module(built(Composed())) for _ in range(2))
    names = ["scale", "dense.kernel", "dense.bias", "dense_1.kernel", "dense_1.bias"]
    assert [name for name, _ in first.named_parameters()] == [name for name, _ in second.named_parameters()] == names
    assert list(kshot.maml(first, inner_lr=0.1).adaptable_params()) == ["scale", "dense_1.kernel", "dense_1.bias"]
    head = small(layers.Dense(8), layers.Dense(3, name="head"))
    assert list(kshot.learners.anil(as_module(head), inner_lr=0.1).adaptable_params()) == ["head.kernel", "head.bias"]


def test_states_of_seed_generators_go_from_pass_to_pass_within_a_task():
    learner = kshot.maml(as_module(built(Composed())), inner_lr=0.1, steps=2).train()
    buffers = {name: value.clone() for name, value in learner.named_buffers()}
    first, second = (learner.adapt(batch_of) for batch_of in [batch()] * 2)
    (name,) = first["buffers"]
    assert name.endswith("seed_generator_state")
    assert first["buffers"][name][1] == buffers[f"model.{name}"][1] + 2
    assert torch.equal(first["params"]["scale"], second["params"]["scale"])
    assert all(torch.equal(value, buffers[name]) for name, value in learner.named_buffers())
    with pytest.raises(RuntimeError, match="use mode='loop'"):
        meta_gradient(learner, two_tasks(), "vmap")


class Centred(layers.Layer):
    def build(self, shape):
        self.mean = self.add_weight(shape=(4,), initializer="zeros", trainable=False, name="mean")

    def call(self, inputs, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(inputs, 0))
        return inputs - self.mean


def test_a_moving_average_of_a_layer_is_kept_as_a_buffer():
    tasks, means = two_tasks(), []
    for mode in ("loop", "vmap"):
        layer = Centred()
        meta_gradient(kshot.maml(as_module(small(layer, layers.Dense(3))), inner_lr=0.1).train(), tasks, mode)
        means.append(layer.mean.numpy())
    assert np.allclose(*means, atol=1e-7)
    assert means[0].any()


def sequence(*parts):
    inputs = keras.Input((5,))
    outputs = layers.Embedding(9, 4, mask_zero=True)(inputs)
    for part in parts:
        outputs = part(outputs)
    return as_module(keras.Model(inputs, outputs))


def test_masks_and_attention_are_the_same_by_loop_and_vmap():
    attention = keras.Input((5, 4))
    pooled = layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 4)(attention, attention))
    words = [kshot.Batch.of(torch.randint(9, (6, 5)), torch.arange(6) % 3, ways=3) for _ in range(4)]
    for module, tasks in [
        (sequence(layers.LSTM(3)), stack([kshot.Task(*words[:2]), kshot.Task(*words[2:])])),
        (as_module(keras.Model(attention, layers.Dense(3)(pooled))), two_tasks((5, 4))),
    ]:
        learner = kshot.maml(module, inner_lr=0.1, steps=2)
        grads = []
        for mode in ("loop", "vmap"):
            learner.zero_grad()
            meta_gradient(learner, tasks, mode)
            grads.append(torch.cat([parameter.grad.flatten() for parameter in learner.parameters()]))
        assert torch.allclose(*grads, atol=1e-6)


def test_models_of_several_inputs_take_them_as_a_tuple_or_by_name():
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    outputs = layers.Dense(3)(layers.Concatenate()([first, second]))
    pair = torch.randn(6, 4), torch.randn(6, 4)
    for inputs, given in [([first, second], pair), ({"first": first, "second": second}, {"second": pair[1]})]:
        given = given | {"first": pair[0]} if isinstance(given, dict) else given
        model = keras.Model(inputs, outputs)
        learner = kshot.maml(as_module(model), inner_lr=0.1)
        support = kshot.Batch.of(given, torch.arange(6) % 3, ways=3)
        prediction = learner.predict(learner.adapt(support, steps=0), given)
        assert torch.equal(prediction, model(list(given) if isinstance(given, tuple) else given))


def test_images_are_given_in_either_order_and_come_back_in_it():
    inputs = torch.randn(2, 1, 8, 8)
    for order, channels in (("channels_last", "last"), ("channels_first", "first")):
        model = small(layers.Conv2D(3, 3, data_format=order), shape=(8, 8, 1) if channels == "last" else (1, 8, 8))
        expected = model(inputs.movedim(1, -1)).movedim(-1, 1) if channels == "last" else model(inputs)
        assert torch.equal(as_module(model, channels="first")(inputs), expected)
        last = as_module(model, channels="last")(inputs.movedim(1, -1))
        assert torch.equal(last, expected.movedim(1, -1))


class Counting(Composed):
    calls = 0

    def call(self, inputs, training=False):
        self.calls = self.calls + 1
        return super().call(inputs) / self.calls


class WithLoss(layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.sum(inputs))
        return inputs


class Foreign(layers.Layer):
    def __init__(self, variable):
        super().__init__()
        self.held = lambda: variable

    def call(self, inputs):
        return inputs * self.held()


class Unseeded(layers.Layer):
    def call(self, inputs):
        return inputs + keras.random.normal(inputs.shape)


REFUSED = {
    "has no weights yet": lambda: keras.Sequential([layers.Dense(3)]),
    "takes a Keras model or layer, got Linear": lambda: nn.Linear(1, 1),
    "has a regularizer, which Keras applies": lambda: small(layers.Dense(3, kernel_regularizer="l2")),
    "has a constraint, which Keras applies": lambda: small(layers.Dense(3, bias_constraint="non_neg")),
    "has an activity_regularizer": lambda: small(layers.Dense(3, activity_regularizer="l2")),
    "is stateful": lambda: keras.Sequential([keras.Input(batch_shape=(6, 5, 2)), layers.LSTM(3, stateful=True)]),
    "computes its products of matrices in float32": lambda: small(layers.Dense(3, dtype="float64")),
    "say where the images have theirs": lambda: small(layers.Conv2D(2, 3), shape=(8, 8, 1)),
    "holds a module of PyTorch": lambda: small(layers.TorchModuleWrapper(nn.Linear(4, 3), output_shape=(None, 3))),
    "renorm=True or axis=0": lambda: small(layers.BatchNormalization(renorm=True)),
    "as a layer of a model only": lambda: small(layers.BatchNormalization()).layers[0],
    "disagree on data_format": lambda: small(
        layers.Conv2D(8, 1), layers.Conv2D(2, 1, data_format="channels_first"), shape=(8, 8, 8)
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_a_learner_would_leave_out_is_refused(sentence):
    with pytest.raises(ValueError, match=sentence):
        as_module(REFUSED[sentence]())


REFUSED_IN_CALL = {
    "sets its attribute 'calls'": lambda: built(Counting()),
    r"adds losses \(add_loss\)": lambda: small(layers.Dense(3), WithLoss()),
    "uses the variable 'outside', which is not one": lambda: small(
        layers.Dense(3), Foreign(keras.Variable([1.0] * 3, name="outside"))
    ),
    "uses the variable .*seed_generator_state'": lambda: small(layers.Dense(3), Unseeded()),
    "assigns a value to its weight": lambda: small(layers.SpectralNormalization(layers.Dense(3))),
}


@pytest.mark.parametrize("sentence", REFUSED_IN_CALL)
def test_what_goes_from_task_to_task_is_refused(sentence):
    learner = kshot.maml(as_module(REFUSED_IN_CALL[sentence]()), inner_lr=0.1).train()
    with pytest.raises(RuntimeError, match=sentence):
        learner.adapt(batch())


def test_masked_statistics_layers_within_and_bare_keras_models_are_refused():
    learner = kshot.maml(sequence(layers.BatchNormalization(), layers.LSTM(3)), inner_lr=0.1)
    with pytest.raises(ValueError, match="receives a mask"):
        learner.adapt(kshot.Batch.of(torch.randint(9, (6, 5)), torch.arange(6) % 3, ways=3))
    module = as_module(small(layers.Dense(8), layers.Dense(3, name="head")))
    for use in (module.get_submodule("head"), module.get_submodule("head").register_forward_pre_hook):
        with pytest.raises(RuntimeError, match="a layer within a Keras model cannot be called by kshot"):
            use(torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"the layer '1' \(Sequential\) cannot be called .*as_module"):
        kshot.protonet(nn.Sequential(nn.Linear(4, 4), small(layers.Dense(3))))


def test_without_keras_on_torch_a_sentence_says_what_to_set(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    with pytest.raises(ImportError, match=r"runs on the backend 'tensorflow'.*KERAS_BACKEND=torch before Keras is imp"):
        import_keras()
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ImportError, match=r"KERAS_BACKEND is 'jax', and kshot needs 'torch'"):
        import_keras()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'kshot\[keras\]'"):
        import_keras()


def test_the_model_adapted_to_a_task_predicts_in_keras_as_the_learner(tmp_path):
    model = small(layers.Conv2D(2, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3), shape=(6, 6, 1))
    learner = kshot.maml(as_module(model, channels="first"), inner_lr=0.3, steps=3)
    support, queries = batch(shape=(1, 6, 6)), torch.randn(5, 1, 6, 6)
    state, before = learner.adapt(support), [weight.numpy().copy() for weight in model.weights]
    expected = learner.predict(state, queries)
    for name in ("adapted.keras", "adapted.weights.h5"):
        about = export_keras(learner, tmp_path / name, state=state)
        assert read_json(about) == {"format": 1, "file": name, "learner": "GradientLearner", "inner": None}
        if name.endswith(".keras"):
            opened = keras.models.load_model(tmp_path / name)
        else:
            opened = keras.models.clone_model(model)
            opened.load_weights(tmp_path / name)
        assert torch.allclose(opened(queries.movedim(1, -1), training=False), expected, atol=1e-5)
    assert all(np.array_equal(weight.numpy(), old) for weight, old in zip(model.weights, before))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapted.json", "adapted.keras", "adapted.weights.h5"]


def test_files_that_would_miss_something_are_refused(tmp_path):
    module = as_module(small(layers.Dense(3)))
    support = batch(ways=2)
    lacking = support._replace(targets=torch.cat([support.targets, torch.zeros(6, 1)], 1))
    plain = kshot.maml(module, inner_lr=0.1)
    norm = as_module(small(layers.BatchNormalization()))
    for sentence, learner, name, state in [
        ("must end in .keras or .weights.h5", plain, "a.h5", None),
        ("this one has 0", kshot.maml(nn.Linear(1, 1), inner_lr=0.1), "a.keras", None),
        ("adapts by Adam", kshot.learners.fomaml(module, inner_lr=0.1, rule="adam"), "a.keras", None),
        ("adapts with minibatch", kshot.learners.fomaml(module, inner_lr=0.1, minibatch=2), "a.keras", None),
        ("trained the parameter 'head.distance", kshot.protonet(module, distance="cosine"), "a.keras", None),
        ("lacks some classes", plain, "a.keras", plain.adapt(lacking)),
        ("depend on the other queries", kshot.maml(norm, inner_lr=0.1, batchnorm="query"), "a.keras", {"params": {}}),
        ("code of a Lambda", kshot.protonet(as_module(small(layers.Lambda(abs)))), "a.keras", None),
    ]:
        with pytest.raises(ValueError, match=sentence):
            export_keras(learner, tmp_path / name, state=state)
    assert not list(tmp_path.iterdir())
    assert read_json(export_keras(kshot.protonet(module), tmp_path / "a.keras"))["inner"] is None


NETWORK = """
from kshot.integrations.keras import as_module
import keras
from torch import nn
from kshot.supplied import InputShape, NumOutputs

def network(shape: InputShape, outputs: NumOutputs, *, width: int = 8) -> nn.Module:
    layers = [keras.layers.Dense(width, activation="tanh"), keras.layers.Dense(outputs, name="head")]
    return as_module(keras.Sequential([keras.Input((shape,) if isinstance(shape, int) else tuple(shape)), *layers]))
"""
RUN = """
name: keras
source: {kind: sinusoids}
model: {kind: my_network:network, width: 16}
learner: {kind: meta_sgd, inner_lr: 0.05, steps: 2}
objective: mse
target: mse <= 100
budget: {rounds: 1}
train: {steps_per_round: 2, tasks_per_step: 2}
evaluate: {num_val_tasks: 2, num_test_tasks: 16, shots: []}
baselines: {names: []}
"""


def test_a_run_holds_a_keras_model_and_is_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_network.py").write_text(NETWORK)
    (tmp_path / "run.yaml").write_text(RUN)
    assert run(load_spec("run.yaml"), tmp_path / "out", console=Console(quiet=True))["trusted"]
    layers.Dense(1)  # the numbers that Keras counts in this process are not those of the run
    learner = kshot.load("out").learner
    said = export_run(tmp_path / "out", onnx=None, keras=tmp_path / "model.keras", state=None)
    assert "how it adapts in" in said[0]
    with pytest.raises(ValueError, match="name one format"):
        export_run(tmp_path / "out", onnx=None, keras=None, state=None)
    inputs = torch.randn(5, 1)
    assert torch.equal(keras.models.load_model("model.keras")(inputs), learner.model(inputs))
    inner = read_json(tmp_path / "model.json")["inner"]
    assert [each["name"] for each in inner["weights"]] == ["dense.kernel", "dense.bias", "head.kernel", "head.bias"]
    assert np.allclose(inner["weights"][1]["inner_lr"], 0.05, atol=0.02)
    sys.modules.pop("my_network")
