"""YAML as run files are written in: one reader, which names the line of what it refuses.

Of YAML it takes lists, keys, words, numbers and aliases. A key that occurs twice, a tag of another type and a value
that contains itself are refused, and so is what costs more than the limits: length, depth, and the number of values
after aliases are repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import yaml
from yaml.constructor import ConstructorError

from kshot.limits import OverLimit, limits, over, shown_bytes

MAX_DIGITS = 100
"""Characters of a number; to convert more takes ever longer."""
Path = tuple[str | int, ...]
"""Keys and numbers that lead to a value."""


class Parsed(NamedTuple):
    """Values of YAML, and the line, from 1, of each path in them."""

    values: Any
    lines: dict[Path, int]


def parse_yaml(text: str, where: str) -> Parsed:
    """Read YAML.

    Args:
        text, where: the text, and the name of the file in errors.

    Raises:
        OverLimit: it is longer or deeper, or has more values, than the limits.
        ValueError: it is not YAML, or a key occurs twice; the message has the line.

    Example:
        >>> parse_yaml("a: 1\\nb: [2]", "x.yaml").values
        {'a': 1, 'b': [2]}
        >>> parse_yaml("a: 1\\nb: 2\\na: 3", "x.yaml")
        Traceback (most recent call last):
        ValueError: x.yaml, line 3: the key 'a' occurs a second time, after line 1; keep one of them
    """
    most = limits().yaml_bytes
    if len(text) > most:
        raise over(f"{where} has {shown_bytes(len(text))}, and at most {shown_bytes(most)} of YAML are read")
    loader = None
    try:
        with _explained(where):
            loader = _Loader(text, where)
        with _explained(where, loader):
            node = loader.get_single_node()
        if node is None:
            return Parsed(None, {})
        loader.check(node)
        lines = dict(_lines(node))
        with _explained(where, loader):
            return Parsed(_unshared(loader.construct_document(node)), lines)
    finally:
        if loader is not None:
            loader.dispose()


@contextmanager
def _explained(where: str, loader: _Loader | None = None) -> Iterator[None]:
    """Turn errors of PyYAML, of which there are many types, into a `ValueError` with the line."""
    try:
        yield
    except OverLimit:
        raise
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else loader.at if loader else None
        said = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise ValueError(f"{where}{f', line {line}' if line else ''}: this is not YAML: {said}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with bounded depth and cost, and without duplicate keys."""

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.where, self.limits = where, limits()
        self.depth = self.composed = 0
        self.at: int | None = None  # line of the value that is being constructed

    def refused(self, node: yaml.Node, said: str) -> ValueError:
        return ValueError(f"{self.where}, line {node.start_mark.line + 1}: {said}")

    def too_many(self) -> OverLimit:
        return over(
            f"{self.where} has more than {self.limits.yaml_values:,} values, those of aliases counted each time"
        )

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth, self.composed = self.depth + 1, self.composed + 1
        if self.composed > self.limits.yaml_values:
            raise self.too_many()
        if self.depth > self.limits.depth:
            line = self.peek_event().start_mark.line + 1
            raise over(f"{self.where}, line {line}: more than {self.limits.depth} values deep within one another")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def check(self, root: yaml.Node) -> None:
        """Refuse more values than the limit, aliases repeated, values in themselves, and keys that occur twice."""
        known: dict[int, int] = {}
        inside: set[int] = set()

        def of(node: yaml.Node) -> int:
            if id(node) in inside:
                raise self.refused(node, "this value contains itself by an alias; write it out")
            if id(node) not in known:
                inside.add(id(node))
                parts = [*node.value] if isinstance(node, yaml.SequenceNode) else []
                if isinstance(node, yaml.MappingNode):
                    self.check_keys(node)
                    parts = [part for pair in node.value for part in pair]
                known[id(node)] = 1 + sum(map(of, parts))
                inside.remove(id(node))
                if known[id(node)] > self.limits.yaml_values:
                    raise self.too_many()
            return known[id(node)]

        of(root)

    def check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.refused(key, "a key is one word, not a list or keys of its own")
            if key.value in lines:
                line = lines[key.value]
                raise self.refused(
                    key, f"the key {key.value!r} occurs a second time, after line {line}; keep one of them"
                )
            lines[key.value] = key.start_mark.line + 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        self.at = node.start_mark.line + 1
        return super().construct_object(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > MAX_DIGITS:
            said = f"a number of {len(node.value):,} characters; it may have {MAX_DIGITS}"
            raise ConstructorError(None, None, said, node.start_mark)
        is_int = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


def _unshared(value: Any) -> Any:
    """A copy in which the values of aliases are objects of their own, so that a change of one is no change of all."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _refuse_tag(loader: _Loader, node: yaml.Node) -> Any:
    raise ConstructorError(None, None, f"the tag {node.tag!r} is not taken", node.start_mark)


for _tag in ("binary", "omap", "pairs", "set"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _refuse_tag)
_Loader.add_constructor(None, _refuse_tag)
for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _lines(node: yaml.Node) -> list[tuple[Path, int]]:
    """Each key's path in a tree, and its line counted from 1."""
    found: list[tuple[Path, int]] = []
    pending: list[tuple[Path, yaml.Node]] = [((), node)]
    while pending:
        path, node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            pairs = [((*path, key.value), key, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pairs = [((*path, number), value, value) for number, value in enumerate(node.value)]
        else:
            continue
        found += [(inner, marked.start_mark.line + 1) for inner, marked, _ in pairs]
        pending += [(inner, value) for inner, _, value in pairs]
    return found
