"""What a graph computes, by onnxruntime, and how much that differs from what it should."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
import onnxruntime
import torch
from torch import Tensor

HUGE = 1e30
"""Size from which a number is no prediction, as the scores of absent classes."""


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session of onnxruntime that computes a graph on one thread of the processor."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def compute(running: onnxruntime.InferenceSession, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a graph by name; inputs that it has not are left out."""
    known = {value.name for value in running.get_inputs()}
    given = {name: leaf.numpy() for name, leaf in inputs.items() if name in known}
    names = [value.name for value in running.get_outputs()]
    return {name: torch.as_tensor(value) for name, value in zip(names, running.run(names, given))}


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of outputs, relative to the largest expected number of each, or to 1 if that is larger.

    Numbers beyond `HUGE`, which are scores of classes that a task has not, have to be beyond it in both.
    """
    worst = 0.0
    for name, leaf in expected.items():
        a, b = found[name].double(), leaf.double()
        huge = b.abs() > HUGE
        if a.shape != b.shape or not torch.equal(huge * b.sign(), (a.abs() > HUGE) * a.sign()):
            return math.inf
        a, b = a[~huge], b[~huge]
        if len(b):
            worst = max(worst, float((a - b).abs().nan_to_num(nan=math.inf).max() / b.abs().max().clamp_min(1.0)))
    return worst
