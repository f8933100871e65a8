"""Tables in pickle files, read without running any code of the file.

A pickle is a program that calls what it names. Here every name is resolved to an inert record of the call, in which the
arrays of a pandas `DataFrame` are then looked up; everything else is an error.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kshot.bounded import read_bytes, unpacked
from kshot.limits import OverLimit


class _Call:
    """A call that unpickling would make: `name` of the function, its arguments, and the states set on the result."""

    name = ""

    def __new__(cls, *arguments: Any) -> _Call:
        call = super().__new__(cls)
        call.arguments, call.states = arguments, []
        return call

    arguments: tuple[Any, ...]
    states: list[Any]

    def __setstate__(self, state: Any) -> None:
        self.states.append(state)


class _Reader(pickle._Unpickler):
    """Unpickles builtin containers, numbers and texts; every other object becomes a `_Call`.

    This is the reader in Python: the one in C allocates as many objects as the largest number that a pickle names.
    """

    def find_class(self, module: str, name: str) -> Any:
        return type("Call", (_Call,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to an object {pid!r} outside of the file")


def read_frame(path: Path) -> dict[str, np.ndarray]:
    """The columns of a pandas `DataFrame` in a pickle file, maybe compressed by xz.

    Raises:
        OverLimit: it unpacks to more than the limits.
        ValueError: it is anything else.
    """
    data = read_bytes(path)
    try:
        data = unpacked(data, "xz", str(path)) if data[:6] == b"\xfd7zXZ\0" else data
        return _columns(_Reader(io.BytesIO(data)).load())
    except (OverLimit, MemoryError):
        raise
    except Exception as error:  # invalid pickles raise any type
        raise ValueError(f"{path} is not a pandas table that can be read without running it: {error}") from None


def _columns(frame: Any) -> dict[str, np.ndarray]:
    if not isinstance(frame, _Call) or not frame.name.endswith("DataFrame"):
        raise ValueError(f"it holds a {getattr(frame, 'name', type(frame).__name__)}")
    (state,) = frame.states
    blocks, axes = state["_mgr"].arguments[:2]
    names = [str(name) for name in _array(axes[0].arguments[1]["data"])]
    columns: dict[str, np.ndarray] = {}
    for block in blocks:
        values, placement, _ = block.arguments
        is_slice = placement.name.endswith("slice")
        numbers = range(len(names))[slice(*placement.arguments)] if is_slice else _array(placement)
        columns |= {names[number]: row for number, row in zip(numbers, _array(values))}
    return {name: columns[name] for name in names}


def _array(call: _Call) -> np.ndarray:
    if call.name.endswith("_frombuffer"):
        buffer, dtype, shape, layout = call.arguments
        return np.frombuffer(buffer, _dtype(dtype)).reshape(shape, order=layout)
    _, shape, dtype, fortran, content = call.states[0]  # of numpy's _reconstruct
    order: Literal["C", "F"] = "F" if fortran else "C"
    if isinstance(content, list):
        values = np.empty(len(content), object)
        values[:] = content
        return values.reshape(shape, order=order)
    return np.frombuffer(content, _dtype(dtype)).reshape(shape, order=order)


def _dtype(call: _Call) -> np.dtype:
    dtype = np.dtype(call.arguments[0])
    if dtype.hasobject:
        raise ValueError("objects cannot be read from a buffer")
    return dtype.newbyteorder(call.states[0][1]) if call.states else dtype
