"""Running a list of checks: seeded, with the check's name in each message, all failures reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kshot.types import Tree

Check = tuple[str, Callable[[], None]]
"""The name of a check, and the function that runs it; it raises AssertionError where the contract is broken."""


def named_checks(checks: Iterable[tuple[str, Callable[[], None]]]) -> Iterator[Check]:
    """The same checks, each with torch's random numbers seeded and its name at the head of what it raises."""
    for name, check in checks:
        yield name, _Named(name, check)


class _Named:
    def __init__(self, name: str, check: Callable[[], None]) -> None:
        self.name, self.check = name, check

    def __call__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                self.check()
            except AssertionError as error:
                raise AssertionError(f"{self.name}: {error}") from error
            except Exception as error:
                raise AssertionError(f"{self.name}: raised {type(error).__name__}: {error}") from error


def run_checks(subject: str, checks: Iterable[Check]) -> None:
    """Run all checks; raise one AssertionError that lists every failure."""
    failures, count = [], 0
    for _, check in checks:
        count += 1
        try:
            check()
        except AssertionError as error:
            failures.append(error)
    if failures:
        lines = "".join(f"\n- {failure}" for failure in failures)
        raise AssertionError(f"{subject} fails {len(failures)} of {count} checks:{lines}") from failures[0]


def require(condition: bool | Tensor, message: str) -> None:
    """Raise AssertionError with a message unless the condition holds; unlike `assert`, under `python -O` too."""
    if not condition:
        raise AssertionError(message)


def is_close(a: Tree, b: Tree, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether two trees have the same shapes and nearly the same values."""
    leaves_a, leaves_b = tree_leaves(a), tree_leaves(b)
    return len(leaves_a) == len(leaves_b) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=rtol, atol=atol)
        for one, other in zip(leaves_a, leaves_b)
    )


def is_equal(a: Tree, b: Tree) -> bool:
    """Whether two trees are bitwise equal: shapes, types and values."""
    leaves_a, leaves_b = tree_leaves(a), tree_leaves(b)
    return len(leaves_a) == len(leaves_b) and all(
        one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(leaves_a, leaves_b)
    )
