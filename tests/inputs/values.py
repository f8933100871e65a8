"""Strategies of hypothesis for values that nobody expects in a key or a cell, and for damaged bytes."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

INTEGERS = st.sampled_from([0, 1, -1, 2, 3, 5, 7, 100, 10**4, 10**6, 2**31, 2**63, 2**64, 10**22, -(10**22), 10**400])
FLOATS = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.5, 1e-45, 1e-300, 1e38, 1e300, float("inf"), float("nan")])
ODD_TEXTS = [
    "", " ", "\t", "null", "nan", "-", "0x10", "1e999", "[/x]", "[bold]", "[/]", "\x1b[31m", "\x00", "\ufeff", "\u2028",
    "a" * 300, "é", "e\u0301", "\U0001f600", "\u202etxt", "..", "../..", "/", "~", "~nobody/x", ".",
    "*", "[", "(", "(?P<", "\\",
    "%s", "%Y-%m-%d", "{}", "{0}", "$HOME", "=1+1", "a:b", ":", "os:", ":x", "json:loads", "no.such:thing", "x.csv",
    "all", "auto", "meta", "cuda:99", "cpu", "mps", "error", "drop", "class", "none", "test", "val", "train",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(ODD_TEXTS), st.text(string.printable, max_size=8), st.text(max_size=4))
SCALARS = st.one_of(INTEGERS, FLOATS, TEXTS, st.booleans(), st.none(), st.dates(), st.integers(), st.floats(width=32))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXTS, st.integers(-2, 2)), inner, max_size=3)
    ),
    max_leaves=4,
)
CELLS = st.one_of(
    TEXTS,
    INTEGERS.map(str),
    FLOATS.map(str),
    st.sampled_from([
        "1,5", "1.234,5", "$ 3", "3 %", "(5)", "1e5", "+7", "--7", "1 000", "٣", "½", "1/2", "12:30", "2024-02-30",
        "01/02/03", "2024-01-01T00:00:00Z", "9999-12-31", "0000-00-00", "-9999-01-01", "true", "ja", "N/A", "#REF!",
        '"', '""', '"a', "a\nb", "a\rb", "a;b", "a\tb", "\udc80", "99999999999999999999999", "1_000", "inf", "-inf",
    ]),
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A value of YAML with one to three places changed: replaced, removed, renamed, repeated, or wrapped."""
    value = _copy(value)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        places = list(_places(value))
        if places:
            holder, key = draw(st.sampled_from(places))
            _change(draw, holder, key)
    return value


def _change(draw: st.DrawFn, holder: Any, key: Any) -> None:
    kind = draw(st.sampled_from(["replace", "replace", "replace", "scale", "remove", "rename", "wrap", "add"]))
    old = holder[key]
    if kind == "replace":
        holder[key] = draw(VALUES)
    elif kind == "scale" and type(old) in (int, float):
        holder[key] = old * draw(st.sampled_from([-1, 0, 2, 10, 1000, 10**9, 0.5, 10**20]))
    elif kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[draw(TEXTS)] = holder.pop(key)
    elif kind == "wrap":
        holder[key] = draw(st.sampled_from([[old], {"kind": old}, {"a": old}, [old, old], [[old]], str(old)]))
    elif kind == "add":
        if isinstance(old, dict):
            old[draw(TEXTS)] = draw(VALUES)
        elif isinstance(holder, list):
            holder.append(draw(VALUES))


def _places(value: Any) -> Any:
    """(holder, key) of each value inside a tree of dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list | tuple) else value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with one to four changes: flipped, cut, repeated, inserted, or cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        length = draw(st.sampled_from([1, 1, 2, 8, 64]))
        kind = draw(st.sampled_from(["flip", "cut", "repeat", "insert", "end", "fill"]))
        if kind == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = draw(st.one_of(st.binary(max_size=8), CELLS.map(_encoded)))
        elif kind == "end" and draw(st.booleans()):
            del changed[place:]
        elif kind == "fill":
            changed[place : place + length] = draw(st.sampled_from([b"\x00", b"\xff", b"9", b","])) * length
    return bytes(changed)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
