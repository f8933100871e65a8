"""The section `search` of a run file: the settings to search over, as distributions of Optuna."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kshot.app.importing import nearest
from kshot.deciding.trial import PLAN_KEYS

SECTIONS = tuple(key for key in PLAN_KEYS if key != "name")
"""The sections whose settings can be searched: those that leave the validation tasks as they are."""
MOST_CORNERS = 64
"""Settings that are checked before the training, at most."""
FORM = "is {low: 1, high: 5}, with log: true for a logarithmic scale, or a list of two or more choices"

Settings = dict[str, Any]
"""Values of Optuna by path; a choice that is a list, or has keys, is JSON."""


@dataclass(frozen=True)
class Space:
    """Ranges and choices by the path of a setting, such as "train.outer_lr".

    Example:
        >>> space = Space.parse({"learner.steps": {"low": 1, "high": 10}, "learner.kind": ["maml", "anil"]}, "x.yaml")
        >>> space.overrides({"learner.steps": 3, "learner.kind": "anil"})
        ['learner.steps=3', 'learner.kind=anil']
    """

    distributions: Mapping[str, BaseDistribution]

    @classmethod
    def parse(cls, section: Any, where: str) -> Space:
        """Read a section; ValueError, with the name of its file, if it is none."""
        if not isinstance(section, dict) or not section:
            raise ValueError(
                f"{where}: kshot sweep needs a section 'search' with the settings to search over, such as "
                "search: {train.outer_lr: {low: 0.0001, high: 0.01, log: true}}"
            )
        paths = [str(path) for path in section]
        for path in paths:
            first = path.split(".")[0]
            if first not in SECTIONS or not all(path.split(".")):
                raise ValueError(
                    f"{where}: search: {path!r} is no setting that can be searched{nearest(first, SECTIONS)}; those "
                    f"of {', '.join(SECTIONS)} can, written as train.outer_lr"
                )
            if inside := next((each for each in paths if each.startswith(f"{path}.")), None):
                raise ValueError(f"{where}: search: {inside} is a part of {path}; search one of them")
        return cls({str(path): _distribution(each, f"{where}: search: {path}") for path, each in section.items()})

    def suggest(self, trial: Trial) -> Settings:
        """The settings of a trial."""
        settings: Settings = {}
        for path, each in self.distributions.items():
            if isinstance(each, CategoricalDistribution):
                settings[path] = trial.suggest_categorical(path, each.choices)
            elif isinstance(each, IntDistribution):
                settings[path] = trial.suggest_int(path, each.low, each.high, step=each.step, log=each.log)
            elif isinstance(each, FloatDistribution):
                settings[path] = trial.suggest_float(path, each.low, each.high, step=each.step, log=each.log)
        return settings

    def overrides(self, settings: Settings) -> list[str]:
        """The settings as `PATH=VALUE` of a run file."""
        return [f"{path}={_yaml(_decoded(value))}" for path, value in settings.items()]

    def within(self, plan: Mapping[str, Any]) -> Settings:
        """The settings that a plan has; {} if one of them is outside the space."""
        found: Settings = {}
        for path, each in self.distributions.items():
            value: Any = plan
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is None:
                continue
            value = _encoded(value)
            if not _contains(each, value):
                return {}
            found[path] = value
        return found

    def corners(self) -> Iterator[Settings]:
        """Each combination of choices, as long as they are few, with all ranges at their low and at their high ends."""
        choices = {
            path: each.choices for path, each in self.distributions.items() if isinstance(each, CategoricalDistribution)
        }
        combinations: Sequence[tuple[Any, ...]]
        if math.prod(map(len, choices.values())) <= MOST_CORNERS // 2:
            combinations = list(itertools.product(*choices.values()))
        else:  # each choice once
            most = max(map(len, choices.values()))
            combinations = [tuple(each[number % len(each)] for each in choices.values()) for number in range(most)]
        for combination in combinations:
            chosen = dict(zip(choices, combination))
            for end in ("low", "high") if len(choices) < len(self.distributions) else ("",):
                yield {
                    path: chosen[path] if path in chosen else getattr(each, end)
                    for path, each in self.distributions.items()
                }

    def to_json(self) -> dict[str, Any]:
        """The section as plain values."""
        return {
            path: list(each.choices)
            if isinstance(each, CategoricalDistribution)
            else {name: value for name, value in vars(each).items() if value not in (None, False)}
            for path, each in self.distributions.items()
        }


def _distribution(given: Any, where: str) -> BaseDistribution:
    if isinstance(given, list):
        choices = [_encoded(each) for each in given]
        if len(set(map(repr, choices))) < max(len(choices), 2):
            raise ValueError(f"{where} {FORM}, no two of them the same; got {given!r}")
        return CategoricalDistribution(choices)
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log", "step"}:
        raise ValueError(f"{where} {FORM}; got {given!r}")
    bounds = {key: _number(given[key]) for key in ("low", "high", "step") if key in given}
    low, high, log = bounds["low"], bounds["high"], given.get("log", False)
    if not all(map(_is_number, bounds.values())) or not isinstance(log, bool):
        raise ValueError(f"{where} {FORM}; got {given!r}")
    if not low < high or bounds.get("step", 1) <= 0:
        raise ValueError(f"{where}: low must be below high, and a step above 0; got {given!r}")
    if log and (low <= 0 or "step" in bounds):
        raise ValueError(f"{where}: a logarithmic scale is for low above 0, and has no step; got {given!r}")
    if all(isinstance(each, int) for each in bounds.values()):
        step = bounds.get("step", 1)
        return IntDistribution(low, high - (high - low) % step, log=log, step=step)
    return FloatDistribution(float(low), float(high), log=log, step=bounds.get("step"))


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(value == each and type(value) is type(each) for each in distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    inside = _is_number(value) and distribution.low <= value <= distribution.high
    return inside and (isinstance(distribution, FloatDistribution) or value == int(value))


def _number(value: Any) -> Any:
    """YAML reads 1e-4, without a point, as a word."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _encoded(value: Any) -> Any:
    """A value that Optuna can hold as a choice."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value  # no word begins so


def _yaml(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf).strip()[1:-1]
