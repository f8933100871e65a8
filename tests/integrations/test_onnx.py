"""Graphs of ONNX compute what the learners do, for other numbers of rows than they were traced with."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from torch import nn
from zoo import ZOO, make_task

import kshot
from kshot.integrations.onnx import NotExportable, adapt_model, predict_model
from kshot.integrations.onnx.graphs import _named, _quiet
from kshot.integrations.onnx.operators import OPSET, TRANSLATIONS
from kshot.integrations.onnx.run import example
from kshot.integrations.onnx.running import compute, difference, session
from kshot.training.checkpoint import flatten

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "onnx.md").read_text()
ROWS = DOCUMENT.split("| learner | predict | adapt |\n| --- | --- | --- |\n")[1]
TABLE = {name: tuple(cells) for name, *cells in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", ROWS, re.MULTILINE)}
"""The rows of the document's table, by the name that a learner has in the zoo."""
REASONS = {
    "operations, and above": "too many operations",
    "linalg_eigh": "no eigh",
    ".numpy()": "NumPy",
    "other sizes": "fixed sizes",
    "translating": "no translation",
}
"""Part of the message about a learner without a graph: its cell in the table."""
FAST = ["r2d2"]
LIMIT = 1e-4


def outcome(make):
    """A graph, and what the document says of it."""
    try:
        model = make()
    except NotExportable as error:
        said = str(error)
        if "gradient steps" in said:
            return None, "gradient steps"
        return None, next((cell for part, cell in REASONS.items() if part in said), said)
    names = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    return model, "any ways" if "ways" in names else "yes"


def check(name):
    """The cells of a learner in the table, after comparing its graphs on tasks of two other sizes."""
    row = ZOO[name]
    learner, task = row.make(3).eval(), make_task(row)
    predicting, predict_cell = outcome(lambda: predict_model(learner, task.support, task.query.inputs))
    adapting, adapt_cell = outcome(lambda: adapt_model(learner, task.support))
    for shots, queries in ((4, 1), (7, 5)):
        support, query = make_task(row, shots=shots, queries=queries, seed=shots)
        weight = torch.rand(len(support.weight)) * (torch.arange(len(support.weight)) != 2)
        support = support._replace(weight=weight + 0.1 * (weight > 0))
        with torch.no_grad():
            state = learner.adapt(support)
        leaves = {f"state/{leaf}": value for leaf, value in flatten(state).items()}
        if adapting:
            given = _named("inputs", support.inputs) | {"targets": support.targets, "weight": support.weight}
            found = compute(session(adapting), given)
            assert difference(found, leaves) <= LIMIT
            leaves = found  # predict from what the other graph gave
        if predicting:
            found = compute(session(predicting), leaves | _named("inputs", query.inputs))
            with torch.no_grad():
                expected = _named("prediction", learner.predict(state, query.inputs))
            assert difference(found, expected) <= LIMIT
    return predict_cell, adapt_cell


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ZOO])
def test_graphs_compute_what_the_learner_does(name):
    assert check(name) == TABLE[shown(name)]


def test_the_table_of_the_document_has_all_learners():
    assert list(TABLE) == [shown(name) for name in ZOO]


def shown(name):
    """A learner's name in the table, which speaks to the reader."""
    return name.replace("one's own", "your own")


def test_a_learner_that_takes_gradient_steps_exports_what_predicts_alone():
    row = ZOO["maml"]
    learner, task = row.make(3), make_task(row)
    with pytest.raises(NotExportable, match="adapt of maml takes gradient steps, .* let kshot adapt, and export what"):
        adapt_model(learner, task.support, kind="maml")
    with pytest.raises(NotExportable, match="predict of TransductiveTuner takes gradient steps"):
        predict_model(ZOO["transductive fine-tuning"].make(3), task.support, task.query.inputs)


class Solve(nn.Module):
    def forward(self, square, right):
        return torch.linalg.solve(square, right), torch.linalg.inv(square)


def test_equations_are_solved_as_by_torch_with_pivots_and_leading_axes():
    size, count = torch.export.Dim("size"), torch.export.Dim("count")
    example = torch.randn(3, 5, 5), torch.randn(3, 5, 2)
    axes = {0: count, 1: size, 2: size}, {0: count, 1: size}
    with _quiet():
        program = torch.export.export(Solve(), example, dynamic_shapes=axes)
        graph = torch.onnx.export(program, opset_version=OPSET, verbose=False, custom_translation_table=TRANSLATIONS)
    running = session(graph.model_proto)
    for rows in (2, 30):
        square, right = torch.randn(4, rows, rows), torch.randn(4, rows, 2)
        square[0, 0, 0] = 0  # needs another pivot
        found = [
            torch.as_tensor(each) for each in running.run(None, {"square": square.numpy(), "right": right.numpy()})
        ]
        for each, exact in zip(found, Solve()(square.double(), right.double())):
            assert (each - exact).abs().max() <= 1e-6 * exact.abs().max()


SHOPS = {"shop": np.repeat(np.arange(30), 12), "visitors": np.random.default_rng(0).uniform(0, 10, 360)}
SHOPS["sales"] = 5 + np.random.default_rng(1).normal(2, 1, 30)[SHOPS["shop"]] * SHOPS["visitors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    source = {"kind": "table", "path": pl.DataFrame(SHOPS), "group": "shop", "target": "sales", "shots": 4}
    few = {"num_val_tasks": 5, "num_test_tasks": 5}
    values = {"source": source | {"queries": 6}, "learner": {"kind": "partial_pooling"}, "target": "mse <= 100"}
    kshot.run(values | {"budget": {"rounds": 1}, "evaluate": few, "baselines": {"names": []}}, folder / "run")
    (folder / "few.csv").write_text("visitors,sales\n1,8.5\n4,19\n6,26\n")
    (folder / "new.csv").write_text("visitors\n2\n8\n")
    return folder


def test_the_command_writes_graphs_of_a_run_and_of_a_state(run, command):
    said = command("export", str(run / "run"), "--onnx", str(run / "graphs"))
    assert "predict.onnx: inputs (queries, 1); differs from kshot by at most" in said
    assert "adapt.onnx: inputs (support, 1), targets (support, 1), weight (support)" in said
    assert "never overwritten" in command("export", str(run / "run"), "--onnx", str(run / "graphs"))
    command("adapt", str(run / "run"), "--support", str(run / "few.csv"), "--out", str(run / "state"))
    command("export", str(run / "run"), "--onnx", str(run / "shop.onnx"), "--state", str(run / "state"))

    trained = kshot.load(run / "run")
    about = {each.key: each.value for each in onnx.load(run / "shop.onnx").metadata_props}
    assert about["learner"] == "partial_pooling"
    assert about["weights_sha256"] == trained.weights
    assert "visitors" in about["preprocessing"]
    assert float(about["largest_difference"]) <= LIMIT

    expected = trained.logits(trained.load_state(run / "state").state, trained.preprocessor.inputs(run / "new.csv", {}))
    inputs, targets, _ = trained.preprocessor.support(run / "few.csv")
    support = {"inputs": inputs, "targets": targets, "weight": torch.ones(3)}
    state = compute(onnxruntime_of(run / "graphs" / "adapt.onnx"), support)
    queries = {"inputs": trained.preprocessor.inputs(run / "new.csv", {})}
    for file, given in ((run / "shop.onnx", queries), (run / "graphs" / "predict.onnx", state | queries)):
        found = compute(onnxruntime_of(file), given)
        assert difference(found, _named("prediction", expected)) <= LIMIT


def onnxruntime_of(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_examples_are_made_up_for_each_kind_of_target():
    shapes = {"inputs": [3], "objective": "classification", "targets": [4]}
    assert example(shapes).targets.sum(0).min() >= 2
    assert example(shapes | {"objective": "multilabel"}).targets.shape[1] == 4
    assert example(shapes | {"objective": "segmentation", "targets": [2, 4, 4]}).targets.shape[1:] == (2, 4, 4)
    assert example(shapes | {"inputs": {"a": [2]}, "objective": "mse"}).inputs["a"].shape[1] == 2
    with pytest.raises(NotExportable, match="this one is on ratings: give examples to"):
        example(shapes | {"counts": [1, 2]})


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch):
    package = importlib.import_module("kshot.integrations.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for name in [name for name in sys.modules if name.startswith("kshot.integrations.onnx.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"needs onnxscript, which is not installed: pip install 'kshot\[onnx\]'"):
        importlib.reload(package)
