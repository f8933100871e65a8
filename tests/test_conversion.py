from collections import OrderedDict, UserDict

import numpy as np
import polars as pl
import pytest
import torch
from scipy import sparse
from torch import nn

import kshot
from kshot import Batch, objectives
from kshot.conversion import to_tensors

X, LABELS = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [0, 2, 1]


class Column:
    """What pandas offers of a column or a table that is not imported."""

    def __init__(self, values, columns=()):
        self.values = values
        if columns:
            self.columns = columns

    def to_numpy(self):
        return self.values

    def __len__(self):
        return len(self.values)


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (np.array(X), np.array(LABELS)),
        (np.array(X, order="F")[::-1][::-1], np.array(LABELS, np.uint16)),
        (np.array(X, ">f8"), np.array(LABELS, ">i4")),
        (X, LABELS),
        (X, [np.int64(label) for label in LABELS]),
        ([tuple(row) for row in X], list(LABELS)),
        (pl.DataFrame(X, orient="row"), pl.Series(LABELS)),
        (Column(np.array(X), ["a", "b"]), Column(np.array(LABELS, object))),
        (np.array(X, object), np.array(LABELS, np.int8)),
    ],
)
def test_arrays_tables_and_lists_equal_tensors(inputs, labels):
    batch, expected = Batch.of(inputs, labels, ways=3), Batch.of(torch.tensor(X), torch.tensor(LABELS), ways=3)
    for ours, theirs in zip(batch, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b"]).assign(label=LABELS, name=["u", "v", "w"])
    batch = Batch.of(frame[["a", "b"]], frame["label"], ways=3)
    assert torch.equal(batch.inputs, torch.tensor(X))
    assert torch.equal(Batch.of(frame[["a"]], frame[["b"]]).targets, torch.tensor(X)[:, 1:])
    with pytest.raises(ValueError, match="'u' in row 0, column 'name', is text"):
        Batch.of(frame[["a", "name"]], LABELS, ways=3)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.zeros(2), torch.float32),
        (np.zeros(2, np.longdouble), torch.float32),
        (np.zeros(2, np.float32), torch.float32),
        (np.zeros(2, np.float16), torch.float16),
        (np.zeros(2, np.uint8), torch.uint8),
        (np.zeros(2, np.uint32), torch.int64),
        (np.zeros(2, bool), torch.bool),
        ([0, 1], torch.int64),
        ([0, 0.5], torch.float32),
        (torch.zeros(2, dtype=torch.float64), torch.float64),
        (torch.zeros(2, dtype=torch.bfloat16), torch.bfloat16),
    ],
)
def test_types_of_numbers(given, dtype):
    assert to_tensors(given, "inputs").dtype == dtype


def test_double_precision_where_that_is_the_default(monkeypatch):
    torch.set_default_dtype(torch.float64)
    try:
        assert Batch.of(np.array(X) / 3, X).inputs.dtype == torch.float64
        assert torch.equal(Batch.of(np.array(X) / 3, X).inputs, torch.tensor(X) / 3)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_array_is_copied():
    array = np.zeros((2, 1), np.float32)
    batch = Batch.of(array, array)
    array += 1
    assert not batch.inputs.any()
    read_only = np.broadcast_to(np.float32(1), (2, 1))
    assert Batch.of(read_only, array).inputs.all()


def test_trees_of_arrays():
    inputs = UserDict(ids=np.array([[1, 2], [3, 4]]), mask=OrderedDict(a=[[True], [False]]), pair=(X[:2], np.zeros(2)))
    batch = Batch.of(inputs, np.zeros((2, 1)))
    assert type(batch.inputs) is dict
    assert type(batch.inputs["mask"]) is dict
    assert [leaf.dtype for leaf in torch.utils._pytree.tree_leaves(batch.inputs)] == [
        torch.int64,
        torch.bool,
        torch.float32,
        torch.float32,
    ]
    tensors = [torch.zeros(2, 1), torch.ones(2, 3)]
    assert all(map(torch.equal, Batch.of(tensors, [0, 1], ways=2).inputs, tensors))  # a list is a tree


def test_everything_is_on_the_device_of_the_inputs():
    inputs = torch.zeros(3, 2, device="meta")  # stands for an accelerator
    for batch in (
        Batch.of(inputs, torch.zeros(3, 1, device="meta")),
        Batch.of(inputs, np.zeros((3, 1)), weight=[1, 0, 1]),
        Batch.of({"a": inputs, "b": X}, LABELS, ways=3),
        Batch.of(X, torch.zeros(3, 1, device="meta")),
    ):
        assert {leaf.device.type for leaf in torch.utils._pytree.tree_leaves(batch)} == {"meta"}


@pytest.mark.parametrize("weight", [[1, 0, 2], np.array([1, 0, 2]), np.array([1.0, 0.0, 2.0]), torch.tensor([1, 0, 2])])
def test_weights_become_floating_point(weight):
    assert torch.equal(Batch.of(X, X, weight=weight).weight, torch.tensor([1.0, 0.0, 2.0]))


class Data:
    """As a graph of torch_geometric."""

    edge_index = torch.zeros(2, 4).long()
    x = torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"targets": ["cat", "dog", "cat"], "ways": 2},
            r"targets: 'cat' in row 0 is text; .*numpy.unique\(labels",
        ),
        ({"targets": pl.Series(["cat", "dog", "cat"]), "ways": 2}, "targets: 'cat' in row 0 is text"),
        ({"inputs": {"a": X, "b": ["u", "v", "w"]}}, r"inputs\['b'\]: 'u' in row 0 is text; encode text"),
        ({"inputs": Column(np.array([[1, "u"]] * 3, object), ["a", "b"])}, "'u' in row 0, column 'b', is text"),
        ({"inputs": np.array([[1], [None], [2]], object)}, "inputs: the value in row 1 is missing"),
        ({"inputs": np.array([[1.0], [np.nan], [2.0]])}, "inputs: 1 values are NaN .* first in row 1"),
        ({"inputs": pl.DataFrame({"a": [1, None, 2]})}, "inputs: 1 values are NaN .* first in row 1"),
        ({"inputs": [[1.0], [1.0, 2.0], [3.0]]}, "rows differ in length .* pad them"),
        ({"inputs": [np.zeros(2), np.zeros(2), np.zeros(2)]}, "3 rows or 3 inputs of the model; use numpy.stack"),
        ({"inputs": np.array(["2020-01-01"] * 3, "M8[D]")}, r"datetime64\[D\] are no numbers"),
        ({"inputs": Data()}, r"a Data is a graph, .* 'adjacency': \(n, V, V\)"),
        ({"inputs": sparse.csr_matrix(np.eye(3))}, r"a sparse csr_matrix .* call .toarray\(\)"),
        ({"inputs": torch.eye(3).to_sparse()}, r"sparse and nested tensors .* \.to_dense\(\)"),
        ({"inputs": torch.tensor(1.0)}, "a single number has no rows"),
        ({"inputs": 3}, "a single number has no rows"),
        ({"inputs": None}, "inputs: the value is missing"),
        ({"inputs": {1, 2, 3}}, "inputs: a set is no number; give tensors, NumPy arrays"),
        ({"inputs": np.full((3, 1), 2**64 - 1, np.uint64)}, "does not fit into int64"),
        ({"weight": [1, -1, 1]}, "weight: row 1 is -1; weights are at least 0"),
        ({"weight": [1, float("nan"), 1]}, "weight: 1 values are NaN"),
        ({"weight": {"a": [1, 1, 1]}}, r"weight must be \(3,\), one number per example, got dict"),
        ({"targets": [0.0, 1.0, 1.0], "ways": 2}, "class ids must be integers"),
    ],
)
def test_what_is_no_number_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batch.of(**({"inputs": X, "targets": X} | arguments))


def test_one_number_per_example_keeps_its_shape_and_the_objective_says_what_it_needs():
    learner = kshot.maml(nn.Linear(2, 1), inner_lr=0.1, objective=objectives.mse)
    with pytest.raises(ValueError, match=r"one number per example is \(n, 1\)"):
        learner.adapt(Batch.of(X, np.array([1.0, 2.0, 3.0])))
    learner.adapt(Batch.of(X, np.array([[1.0], [2.0], [3.0]])))
