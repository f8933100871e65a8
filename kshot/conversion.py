"""Numbers of NumPy, pandas, polars and Python lists as tensors, and back; objects that are no numbers are refused.

Neither pandas nor polars is imported: their columns and tables are recognised by their methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TEXT_ADVICE = {
    "targets": (
        "class labels are integers 0 … ways-1: give numpy.unique(labels, return_inverse=True)[1] and ways=, with the "
        "same order of classes in the support and the query set"
    ),
    "inputs": "encode text as numbers first, for example by the tokenizer of the model",
    "weight": "weights are numbers",
}


def to_tensors(tree: Any, name: str, device: torch.device | None = None) -> Any:
    """The tree with tensors for leaves; dicts and other mappings become dicts, tuples and lists of tensors stay.

    - A tensor stays as it is, dtype and device included.
    - Arrays, lists of numbers, and columns or tables of pandas and polars become tensors of the same shape and kind of
      number; float64 becomes `torch.get_default_dtype()`, the precision of a model's weights, and unsigned integers
      become int64. Data are copied.

    Args:
        tree: the inputs, targets or weights of examples.
        name: what they are, for messages.
        device: device of the new tensors.

    Raises:
        ValueError: a leaf is text, a graph or another object that is no numbers, or a tensor without rows.

    Example:
        >>> {key: leaf.dtype for key, leaf in to_tensors({"id": [3, 4], "x": np.zeros((2, 1))}, "inputs").items()}
        {'id': torch.int64, 'x': torch.float32}
    """
    if isinstance(tree, Tensor):
        return _check_tensor(tree, name)
    if isinstance(tree, Mapping) and not hasattr(tree, "edge_index"):
        return {key: to_tensors(value, f"{name}[{key!r}]", device) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [to_tensors(value, f"{name}[{number}]", device) for number, value in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, list):
        if any(isinstance(value, Tensor | Mapping | tuple) and not _is_row(value) for value in tree):
            return [to_tensors(value, f"{name}[{number}]", device) for number, value in enumerate(tree)]
        if any(isinstance(value, np.ndarray) or hasattr(value, "to_numpy") for value in tree):
            raise ValueError(
                f"{name}: a list of {len(tree)} arrays may be {len(tree)} rows or {len(tree)} inputs of the model; use "
                "numpy.stack for rows, and a tuple for several inputs"
            )
    array = _array(tree, name)
    if array.dtype.kind in "OUS":
        array = _numbers(array, tree, name)
    return _check_tensor(_tensor(array, name, device), name)


def _is_row(value: Any) -> bool:
    """Whether a member of a list is a row of numbers, written as a tuple."""
    return isinstance(value, tuple) and all(isinstance(part, int | float | bool | np.number) for part in value)


def _check_tensor(tensor: Tensor, name: str) -> Tensor:
    if tensor.layout != torch.strided:
        raise ValueError(
            f"{name}: sparse and nested tensors have no rows of equal shape; call .to_dense(), or pad them"
        )
    if tensor.ndim == 0:
        raise ValueError(f"{name}: a single number has no rows; the first axis of each tensor is that of the examples")
    return tensor


def _array(values: Any, name: str) -> np.ndarray:
    """Values as a NumPy array of any dtype."""
    if hasattr(values, "edge_index") or type(values).__module__.partition(".")[0] in ("torch_geometric", "dgl"):
        raise ValueError(
            f"{name}: a {type(values).__name__} is a graph, and examples are rows of tensors: give each graph a row, "
            "in a dict of tensors that are padded to V nodes, such as {'nodes': (n, V, D), 'adjacency': (n, V, V), "
            "'mask': (n, V)}"
        )
    if hasattr(values, "toarray"):
        raise ValueError(f"{name}: a sparse {type(values).__name__} has no rows of numbers; call .toarray()")
    try:
        return values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: the rows differ in length ({error}); pad them to one length") from None


def _numbers(array: np.ndarray, values: Any, name: str) -> np.ndarray:
    """An array of Python objects or text as numbers; an error names the first value that is none."""
    flat = array.reshape(-1).tolist()
    for number, value in enumerate(flat):
        if not isinstance(value, int | float | np.number | np.bool_):
            where = _place(number, array, values)
            if isinstance(value, str | bytes):
                advice = next(text for part, text in TEXT_ADVICE.items() if name.startswith(part))
                raise ValueError(f"{name}: {value!r}{where} is text; {advice}")
            if value is None or type(value).__name__ in ("NAType", "NaTType"):
                raise ValueError(f"{name}: the value{where} is missing; remove the row, or replace the value")
            raise ValueError(
                f"{name}: a {type(value).__name__}{where} is no number; give tensors, NumPy "
                "arrays, lists of numbers, columns of pandas or polars, or tuples and dicts of these"
            )
    return np.array(flat).reshape(array.shape)


def _place(number: int, array: np.ndarray, values: Any) -> str:
    """Where a value of a flattened array stands, in words."""
    if array.ndim == 0:
        return ""
    width = max(1, array.size // len(array))
    columns = list(getattr(values, "columns", ()))
    return f" in row {number // width}" + (f", column {columns[number % width]!r}," if len(columns) == width else "")


def _tensor(array: np.ndarray, name: str, device: torch.device | None) -> Tensor:
    """A copy of an array of numbers."""
    kind, dtype = array.dtype.kind, None
    if kind not in "biufc":
        raise ValueError(
            f"{name}: values of type {array.dtype} are no numbers; convert them, for example by .astype(float)"
        )
    if kind == "f" and array.dtype.itemsize >= 8:
        array, dtype = array.astype(np.float64), torch.get_default_dtype()
    elif kind == "u" and array.dtype.itemsize > 1:
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name}: {array.max()} does not fit into int64")
        array = array.astype(np.int64)
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
    return torch.tensor(native, dtype=dtype, device=device)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values of a tensor, without a copy where that is possible; bfloat16 becomes float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
