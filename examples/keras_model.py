# %% [markdown]
# # A Keras model
#
# **Shows** a Keras 3 model as the base model of a meta-learner, and the result as a file that Keras opens on
# TensorFlow, JAX or PyTorch, where adapting takes three lines of NumPy.
#
# **Needs** `pip install 'kshot[keras]'`, but no TensorFlow. **Takes** about a minute on two cores; with `QUICK =
# True` some seconds, with worse figures.

# %%
import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn

import kshot
from kshot.integrations.keras import as_module, export_keras

import keras  # isort: skip  # after kshot.integrations.keras, which chooses Keras's torch backend

QUICK = False

# %% [markdown]
# ## The model
#
# An ordinary Keras model. `as_module` makes a PyTorch module that shares its weights, so that training the one trains
# the other. Sources of kshot give images as (n, channels, height, width), and `channels="first"` converts them to the
# order of the layers.

# %%
keras.utils.set_random_seed(0)
blocks = [keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu") for width in (16, 32, 32)]
model = keras.Sequential([keras.Input((28, 28, 1)), *blocks, keras.layers.Flatten(), keras.layers.Dense(64)])

# %% [markdown]
# ## Meta-training
#
# The tasks: five characters of a script that the training has not seen, one drawing of each. A prototypical network
# classifies by the nearest class mean of the features, and training makes features for which that works. Any other
# learner of kshot takes the module in the same way.

# %%
tasks = kshot.sources.glyphs(ways=5, shots=1, queries=15)
learner = kshot.protonet(as_module(model, channels="first"))
untrained = kshot.evaluate(learner, tasks, split="val", num_tasks=20 if QUICK else 200)
losses = kshot.fit(learner, tasks, steps=40 if QUICK else 600, tasks_per_step=4, outer_lr=2e-3, mode="vmap")
print(f"query loss: {sum(losses[:20]) / 20:.2f} in the first 20 steps, {sum(losses[-20:]) / 20:.2f} in the last 20")

# %% [markdown]
# As a baseline, the nearest class mean of the pixels, which needs no training.

# %%
accuracy = {
    name: kshot.evaluate(each, tasks, num_tasks=20 if QUICK else 200).metrics["accuracy"]
    for name, each in {"Keras model, meta-trained": learner, "pixels": kshot.protonet(nn.Flatten())}.items()
}
for name, each in accuracy.items():
    print(f"{name}: {each}")

# %% [markdown]
# ## Back to Keras
#
# `export_keras` writes the architecture and the trained weights. Whoever opens the file needs neither kshot nor
# PyTorch: adapting to new classes is a mean of features, and predicting the nearest of them. Here Keras still runs on
# PyTorch; with `KERAS_BACKEND=tensorflow` in another process the lines are the same.

# %%
export_keras(learner, "embedding.keras")
embedding = keras.models.load_model("embedding.keras")


def features(images: torch.Tensor) -> np.ndarray:
    """The features of images (n, channels, height, width)."""
    return keras.ops.convert_to_numpy(embedding(np.moveaxis(images.numpy(), 1, -1)))


task = tasks.task("test", 0)
targets = task.support.targets.numpy()  # one-hot
means = targets.T @ features(task.support.inputs) / targets.sum(0)[:, None]
logits = -((features(task.query.inputs)[:, None] - means) ** 2).sum(-1)

# %% [markdown]
# It is the same as what kshot computes, up to rounding and to a constant of each query, which the softmax cancels.

# %%
learner.eval()
with torch.no_grad():
    expected = learner.predict(learner.adapt(task.support), task.query.inputs).log_softmax(1).numpy()
largest_difference = np.abs(log_softmax(logits, axis=1) - expected).max()
print(f"accuracy on this task: {(logits.argmax(1) == task.query.targets.argmax(1).numpy()).mean():.2f}")
print(f"largest difference of log-probabilities: {largest_difference:.1e}")

# %% [markdown]
# A learner that adapts by gradient steps, such as `kshot.maml`, exports its initial weights, and beside them as JSON
# how many steps to take, on which loss and at which rates; with `state=` it exports the model of one task.
# `adapt_in_tensorflow.py`, beside this notebook, takes such steps by a `GradientTape`.
