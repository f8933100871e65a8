"""Tables in pickle files, read without unpickling: the file's instructions are followed on paper, and none is run.

A pickle is a program, and loading one runs whatever it says. Here its calls become inert records, in which the arrays
of a pandas `DataFrame` are then looked up; what is no such table is an error.
"""

from __future__ import annotations

import lzma
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np


class _Call(NamedTuple):
    """What loading would have called or named: `name` with arguments, and the state set on the result."""

    name: str
    arguments: tuple[Any, ...]
    state: list[Any]


class _Mark:
    """Where a list or tuple in the making begins on the stack."""


def read_frame(path: Path) -> dict[str, np.ndarray]:
    """The columns of a pandas `DataFrame` in a pickle file, compressed by xz or not.

    Raises:
        ValueError: the file holds anything else.
    """
    data = path.read_bytes()
    try:
        frame = _trace(lzma.decompress(data) if data[:6] == b"\xfd7zXZ\0" else data)
        return _columns(frame)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, lzma.LZMAError) as error:
        raise ValueError(f"{path} holds no table of pandas that can be read without running it: {error}") from None


def _trace(data: bytes) -> Any:
    """What the pickle would build, calls left as records."""
    stack: list[Any] = []
    memo: list[Any] = []

    def since_mark() -> list[Any]:
        place = max(at for at, value in enumerate(stack) if isinstance(value, _Mark))
        taken = stack[place + 1 :]
        del stack[place:]
        return taken

    def pop(count: int) -> tuple[Any, ...]:
        taken = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return taken

    def set_items(pairs: list[Any]) -> None:
        stack[-1].update(zip(pairs[::2], pairs[1::2]))

    simple: dict[str, Callable[[], Any]] = {
        "MARK": _Mark,
        "NONE": lambda: None,
        "NEWTRUE": lambda: True,
        "NEWFALSE": lambda: False,
        "EMPTY_DICT": dict,
        "EMPTY_LIST": list,
        "EMPTY_TUPLE": tuple,
        "TUPLE": lambda: tuple(since_mark()),
        "TUPLE1": lambda: pop(1),
        "TUPLE2": lambda: pop(2),
        "TUPLE3": lambda: pop(3),
        "STACK_GLOBAL": lambda: _Call(".".join(pop(2)), (), []),
    }
    argument: Any
    for operation, argument, _ in pickletools.genops(data):
        name = operation.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = pop(2)
            stack.append(_Call(function.name, arguments, []))
        elif name == "BUILD":
            (state,) = pop(1)
            stack[-1].state.append(state)
        elif name == "APPENDS":
            values = since_mark()
            stack[-1].extend(values)
        elif name == "SETITEMS":
            set_items(since_mark())
        elif name == "SETITEM":
            set_items(list(pop(2)))
        elif name in simple:
            value = simple[name]()
            stack.append(value)
        elif name.startswith(("BININT", "LONG", "BINFLOAT", "SHORT_BIN", "BIN", "BYTEARRAY")):
            stack.append(argument)
        else:
            raise ValueError(f"it has the instruction {name}")
    raise ValueError("it has no end")


def _columns(frame: _Call) -> dict[str, np.ndarray]:
    if not frame.name.endswith("DataFrame"):
        raise ValueError(f"it holds a {frame.name}")
    (state,) = frame.state
    blocks, axes = state["_mgr"].arguments[:2]
    names = _index(axes[0])
    found: dict[str, np.ndarray] = {}
    for block in blocks:
        values, places, _ = block.arguments
        at = range(len(names))[slice(*places.arguments)] if places.name.endswith("slice") else _array(places)
        found |= {names[place]: row for place, row in zip(at, _array(values))}
    return {name: found[name] for name in names}


def _index(axis: _Call) -> list[str]:
    _, state = axis.arguments
    return [str(name) for name in _array(state["data"])]


def _array(call: _Call) -> np.ndarray:
    if call.name.endswith("_frombuffer"):
        buffer, kind, shape, layout = call.arguments
        return np.frombuffer(buffer, _dtype(kind)).reshape(shape, order=layout)
    _, shape, kind, fortran, content = call.state[0]  # of numpy's _reconstruct
    order: Literal["C", "F"] = "F" if fortran else "C"
    if isinstance(content, list):
        values = np.empty(len(content), object)
        values[:] = content
        return values.reshape(shape, order=order)
    return np.frombuffer(content, _dtype(kind)).reshape(shape, order=order)


def _dtype(call: _Call) -> np.dtype:
    kind = np.dtype(call.arguments[0])
    if kind.hasobject:
        raise ValueError("objects cannot be read from a buffer")
    return kind.newbyteorder(call.state[0][1]) if call.state else kind
