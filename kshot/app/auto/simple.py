"""The simple baselines of a race, which are measured before any plan."""

from __future__ import annotations

import math
from typing import Any

from kshot.app.auto.plans import baseline_plan
from kshot.app.auto.race import Entrant, Race
from kshot.evaluation.baselines import of_fields, without_model
from kshot.evaluation.evaluate import evaluate
from kshot.tasks.read_log import during

SHARE = 0.2
"""The share of the time that they may take together, at most."""
LEAST = 4.0
"""Seconds that each may take, within half of the time: what is chosen is compared with the best."""
LONGEST = 60.0
"""Seconds that one may take where none was done in the time."""


def measure_simple(race: Race, num_tasks: int) -> None:
    """Measure the simple baselines on validation tasks, as long as a share of the time lasts; one at least."""
    candidates = without_model(race.source) | of_fields(race.source)
    limit = SHARE * race.seconds
    least = max(limit, min(LEAST * len(candidates), race.seconds / 2)) / max(len(candidates), 1)
    for name in candidates:
        if name not in race.entrants:  # else it was measured before an interruption
            measure_baseline(race, name, num_tasks, max(limit - race.spent, least))
    for name in candidates:  # where time is so short that none was done: what is chosen must be compared with one
        if race.simple:
            break
        measure_baseline(race, name, num_tasks, max(race.left, LONGEST))


def measure_baseline(race: Race, name: str, num_tasks: int, seconds: float) -> None:
    """Fit a simple baseline to the training tasks of a race and measure it on validation tasks, within the seconds."""

    def figures() -> dict[str, Any]:
        learner = race.baseline(name)
        with during(race.source, "tuning"):
            found = evaluate(learner, race.source, split="val", num_tasks=num_tasks, audit=False).metrics
        figure = race.target.of(found)
        if not math.isfinite(figure.mean):
            raise ValueError(f"its {race.target.metric} is not finite")
        return {"figure": figure._asdict(), "finished": True}

    entrant = race.entrants.setdefault(name, Entrant(baseline_plan(name, race.target)))
    race.time(entrant, figures, seconds)
