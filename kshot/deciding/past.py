"""What a policy may know of experience: earlier trials of the same learner, as a run keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kshot.deciding.curves import weigh_exponents
from kshot.deciding.trial import Trial

MOST = 100
"""Trials that a run keeps, the latest ones."""
POINTS = 3
"""Figures of a trial from which its exponent is estimated."""


@dataclass(frozen=True)
class Past:
    """Trials of one learner on one kind of tasks, with figures of one metric.

    A run logs them when it starts, and reads them from its log when it is resumed, so that its policy decides the same
    whatever has happened to the database since.

    Args:
        trials: see `of`.
    """

    trials: tuple[Trial, ...] = ()

    @classmethod
    def of(cls, trials: Iterable[Trial], learner: str, kind: str, metric: str) -> Past:
        """The latest trials of a learner's kind on a kind of tasks with a metric."""
        same = [
            trial
            for trial in trials
            if trial.kind == kind
            and trial.descriptors.get("metric") == metric
            and _options(trial, "learner").get("kind") == learner
        ]
        return cls(tuple(sorted(same, key=lambda trial: (trial.created, trial.sha256))[-MOST:]))

    @cached_property
    def exponents(self) -> np.ndarray:
        """The weight of each of `curves.EXPONENTS` (C,) by the trials with at least three figures."""
        curves = []
        for trial in self.trials:
            points = {f.seconds: f for f in trial.figures if f.value is not None and f.seconds > 0}
            figures = [points[seconds] for seconds in sorted(points)]
            if len(figures) >= POINTS:
                values = [f.value for f in figures if f.value is not None]
                curves.append(([f.seconds for f in figures], values, (figures[-1].half_width or 0.0) / 1.96))
        return weigh_exponents(curves)

    def gain(self, action: Mapping[str, Any], present: Mapping[str, Any]) -> float:
        r"""What is expected of an action under the present settings, from -1 to 1; 0 where nothing is known:

        $$ \\frac{\\text{data sets where it is better} - \\text{data sets where it is worse}}{\\text{data sets} + 1}, $$

        over the data sets on which plans with the settings of the action were tried, and plans with the present ones;
        each side has the best figure of its trials.
        """
        before = {name: present.get(name) for name in action}
        of_action, of_present = self._best(action), self._best(before)
        both = of_action.keys() & of_present.keys()
        signs = [np.sign(of_action[data_set] - of_present[data_set]) for data_set in both]
        return float(sum(signs) / (len(both) + 1))

    def _best(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """The best figure on each data set, larger is better, of the trials whose plan has these settings."""
        best: dict[str, float] = {}
        for trial in self.trials:
            values = [figure.value for figure in trial.figures if figure.value is not None]
            if not values or not trial.data_set or not all(_has(trial, *each) for each in settings.items()):
                continue
            sign = 1 if trial.descriptors.get("higher_is_better") else -1
            best[trial.data_set] = max(best.get(trial.data_set, -np.inf), *(sign * value for value in values))
        return best

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to plain values."""
        return [trial.to_json() for trial in self.trials]

    @classmethod
    def from_json(cls, entries: Iterable[Any]) -> Past:
        """The inverse of `to_json`; ValueError if an entry is no trial, or was changed."""
        return cls(tuple(Trial.from_json(entry) for entry in entries))


def _options(trial: Trial, part: str) -> Mapping[str, Any]:
    options = trial.plan.get(part)
    return options if isinstance(options, dict) else {}


def _has(trial: Trial, name: str, value: Any) -> bool:
    """Whether a trial's plan names a setting with this value; settings of the source are not part of a plan."""
    part, _, option = name.rpartition(".")
    return _options(trial, part or "train").get(option) == value
