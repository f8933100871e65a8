"""The weights of the queries that are being predicted, for learners whose predictions depend on the other queries.

`Learner.predict` receives inputs alone. A transductive learner also needs to know which of them are padding, or the
padding of a stack of tasks would change its predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from kshot.context import holding

_weight: ContextVar[Tensor | None] = ContextVar("query_weight", default=None)


@contextmanager
def query_weight(weight: Tensor) -> Iterator[None]:
    """A context in which the queries that a learner predicts have these weights, (m,); rows of weight 0 are padding.

    It belongs to the thread, as every `ContextVar` does, and may be entered under `vmap`.

    Example:
        >>> with query_weight(torch.tensor([1.0, 0.0])):
        ...     current_query_weight(2, like=torch.zeros(2, 5))
        tensor([1., 0.])
    """
    with holding(_weight, weight):
        yield


def given_query_weight(count: int) -> Tensor | None:
    """The weights (count,) of the queries that are being predicted; None outside of a `query_weight` context.

    Raises:
        ValueError: the context was entered for another number of queries.
    """
    weight = _weight.get()
    if weight is not None and weight.shape != (count,):
        raise ValueError(
            f"query_weight was entered with weights {tuple(weight.shape)}, but {count} queries are predicted: a "
            "transductive learner takes all queries of a task in one call of predict"
        )
    return weight


def current_query_weight(count: int, like: Tensor) -> Tensor:
    """As `given_query_weight`, but ones outside of a context, with the dtype and on the device of the tensor `like`."""
    weight = given_query_weight(count)
    return torch.ones(count, dtype=like.dtype, device=like.device) if weight is None else weight.to(like)
