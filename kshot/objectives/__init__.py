"""Objectives: what the tasks of a source ask for, by kind of target."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import get_type_hints

from kshot.bounded import parse_json
from kshot.objectives.base import Objective, check_task_values, refuse_parts, weighted_mean
from kshot.objectives.classification import (
    classes_present,
    classification,
    next_token,
    next_token_of,
    only_present,
    shared_classification,
)
from kshot.objectives.multilabel import multilabel
from kshot.objectives.ratings import levels, levels_of, rates_items, rating
from kshot.objectives.regression import forecast, gaussian, in_units, mse
from kshot.objectives.segmentation import segmentation

__all__ = [
    "Objective",
    "check_task_values",
    "classes_present",
    "classification",
    "forecast",
    "from_name",
    "gaussian",
    "in_units",
    "levels",
    "levels_of",
    "mse",
    "multilabel",
    "name_of",
    "next_token",
    "next_token_of",
    "only_present",
    "rates_items",
    "rating",
    "refuse_parts",
    "segmentation",
    "shared_classification",
    "weighted_mean",
]

_FIXED = (mse, classification, shared_classification, multilabel, gaussian, next_token, segmentation)
_WITH_OPTIONS = (next_token_of, in_units, forecast, rating, levels)
_OBJECTIVES: dict[str, Objective | Callable[..., Objective]] = {
    **{str(objective.name): objective for objective in _FIXED},
    **{function.__name__: function for function in _WITH_OPTIONS},
}


def from_name(name: str, *, allow_import: bool = False) -> Objective:
    """The objective with a name, as `name_of` gives it.

    Args:
        name: a name of this package, or `package.module:attribute` of another one; for a function that returns an
            objective, its arguments follow as a JSON object.
        allow_import: whether to import modules of other packages. Not for names from files of unknown origin: an import
            runs the module's code.

    Raises:
        ValueError: no objective has this name.

    Example:
        >>> from_name("mse") is mse, from_name(name_of(forecast(24))) == forecast(24)
        (True, True)
    """
    attribute, _, options = name.partition(" ")
    module, colon, attribute_of_module = attribute.partition(":")
    if colon and not allow_import:
        raise ValueError(f"objective {name!r} would import {module}; this file may only name kshot's own objectives")
    try:
        value = getattr(importlib.import_module(module), attribute_of_module) if colon else _OBJECTIVES[attribute]
    except (KeyError, ImportError, AttributeError):
        raise ValueError(
            f"there is no objective {name!r}; expected one of {', '.join(_OBJECTIVES)}, or package.module:attribute"
        ) from None
    if isinstance(value, Objective) and not options:
        return value
    # Only functions that declare to return an objective are called: a file must not choose any function at all.
    if not inspect.isfunction(value) or get_type_hints(value).get("return") is not Objective:
        raise ValueError(f"{name!r} is neither an Objective nor a function annotated to return one")
    objective: Objective = value(**parse_json(options or "{}"))
    return objective._replace(name=name) if colon else objective


def name_of(objective: Objective) -> str:
    """The name of an objective, with its options, from which `from_name` makes it again.

    Raises:
        ValueError: the objective has no name, or differs from the objective of kshot with its name.
    """
    if objective.name is None:
        raise ValueError(
            "the objective has no name, so no file can refer to it; give Objective(name='module:attribute')"
        )
    if ":" not in objective.name.partition(" ")[0] and from_name(objective.name) != objective:
        raise ValueError(f"the objective differs from the one named {objective.name!r}; give it a name of its own")
    return objective.name
