"""Adapt a model of `kshot.integrations.keras.export_keras` to a task in TensorFlow, without kshot and without PyTorch.

    pip install tensorflow keras numpy
    python examples/adapt_in_tensorflow.py classifier.keras task.npz predictions.npz

task.npz holds the arrays inputs (n, ...), targets (n, classes), one-hot, and queries (m, ...). Images have the order of
the model's layers, by default (n, H, W, C). classifier.json, which export_keras writes too, says how to adapt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

LOSSES = {
    "classification": keras.losses.CategoricalCrossentropy(from_logits=True),
    "shared_classification": keras.losses.CategoricalCrossentropy(from_logits=True),
    "mse": keras.losses.MeanSquaredError(),
}


def adapt(model: Any, inner: dict[str, Any], inputs: np.ndarray, targets: np.ndarray) -> None:
    """Take the inner steps on a support set: the weights of the model become those of the task.

    Args:
        model: the model as it was exported; load it again for the next task.
        inner: the settings under "inner" in the JSON file.
        inputs: (n, ...).
        targets: (n, ...), one-hot for classes; each class has an example.
    """
    if inner["momentum"] or inner["weight_decay"]:
        raise ValueError("this example takes plain gradient steps, without momentum and weight decay")
    by_support = inner["batchnorm"] == "support"
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # a call with training=True then stores the statistics of the support set
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    adapting = [model.weights[each["number"]] for each in inner["weights"]]
    for step in range(inner["steps"]):
        with tf.GradientTape() as tape:
            loss = LOSSES[inner["objective"]](targets, model(inputs, training=by_support))
        grads = tape.gradient(loss, [weight.value for weight in adapting])
        for weight, grad, each in zip(adapting, grads, inner["weights"]):
            rates = each.get("inner_lr_of_steps")
            rate = each["inner_lr"] if rates is None else rates[min(step, len(rates) - 1)]
            weight.assign_sub(tf.constant(rate, grad.dtype) * grad)
    if by_support:
        model(inputs, training=True)  # the statistics of the support set under the adapted weights


def main(model_file: str, task_file: str, predictions_file: str) -> None:
    model = keras.models.load_model(model_file)
    about = json.loads(Path(model_file).with_suffix(".json").read_text())
    with np.load(task_file) as task:
        inputs, targets, queries = task["inputs"], task["targets"], task["queries"]
    before = model(queries, training=False)
    adapt(model, about["inner"], inputs, targets)
    after = model(queries, training=False)
    np.savez(predictions_file, *[weight.numpy() for weight in model.weights], before=before, after=after)


if __name__ == "__main__":
    main(*sys.argv[1:])
