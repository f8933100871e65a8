"""Cross-validation of the best of a race, where its validation tasks are of few groups, whose figures are noisy.

The groups of training and validation are split anew, each into validation at most once; those of the test stay apart.
The best of the race are trained again on each of these splits, so that they are compared, and mixed, on several times
as many groups. What is kept is as it was trained in the race.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kshot.app.auto.plans import BASELINE
from kshot.app.auto.question import Question
from kshot.app.auto.race import SHORTEST, Entrant, Race
from kshot.app.auto.simple import measure_baseline
from kshot.app.build import build_source
from kshot.app.spec import Spec
from kshot.deciding.decisions import EventLog
from kshot.files import write_text
from kshot.tasks.source import TaskSource

FEW = 50
"""Validation groups from which on there is no cross-validation."""
SPLITS = 5
"""Splits, with that of the race."""
FINALISTS, SIMPLE = 4, 3
"""How many of the best are compared, and how many of the best simple baselines at least."""
RANDOM = {"ratio", "seed", "exact", "folds", "fold"}
"""Keys of the splits of run files that are random, so that others are as good."""


class GroupSplit(NamedTuple):
    """The names of the groups to train and to validate on."""

    train: list[str]
    val: list[str]


def further_splits(spec: Spec, source: TaskSource) -> list[GroupSplit]:
    """Splits of the groups of training and validation other than the source's; none if its split is not random, a task
    is not a group, or there are `FEW` validation groups or more."""
    units, split = source.units("val", range(1)), getattr(spec.source, "split", None)
    train, val = (list(source.members(part)) for part in ("train", "val"))
    if units is None or units.ndim > 1 or not 0 < len(val) < FEW or (split and not set(split) <= RANDOM):
        return []
    if any(name != name.strip() or len(name.splitlines()) != 1 for name in (*train, *val)):
        return []  # a file with a name in each line cannot hold them
    sizes, least = source.sizes("train"), min(source.sizes("val").values())  # validation may need more examples
    large = [name for name in train if sizes[name] >= least]
    order = [large[place] for place in np.random.default_rng(0).permutation(len(large))]
    parts = [order[start : start + len(val)] for start in range(0, len(order), len(val))][: SPLITS - 1]
    whole = [part for part in parts if len(part) == len(val)]
    return [GroupSplit([*(name for name in train if name not in set(part)), *val], part) for part in whole]


def cross_validate(
    race: Race, splits: Sequence[GroupSplit], question: Question, num_tasks: int, seconds: float
) -> None:
    """Train the best of a race again on further splits, as long as the time lasts, and compare them on all splits.

    Args:
        splits: those of `further_splits`.
        num_tasks: number of validation tasks.
        seconds: time for all of it; a split of which something is missing when it is over does not count.
    """
    logged = race.log.of("finalists")
    finalists = logged[-1]["plans"] if logged else _best(race)
    if not splits or len(finalists) < 2:
        return
    if not logged:
        race.log.record("finalists", plans=finalists)
    spent = 0.0
    for number, split in enumerate(splits, 1):
        cost = sum(_needed(race.entrants[name]) for name in finalists)
        try:
            other = _on(race, split, question, race.folder / f"split-{number}", 2 * cost + SHORTEST)
        except ValueError as error:  # such as values of a column that are in validation groups alone
            race.say(f"no further cross-validation: {error}")
            break
        missing = [name for name in finalists if name not in other.entrants]  # others were tried before an interruption
        if missing and spent + other.spent + cost > seconds:
            break
        if missing:
            race.say(f"cross-validation: {number + 1} of {len(splits) + 1} splits of the groups")
        for name in missing:
            entrant = race.entrants[name]
            if entrant.simple:
                measure_baseline(other, name, num_tasks, max(3 * _needed(entrant), SHORTEST))
            else:
                other.train(other.entrants.setdefault(name, Entrant(entrant.plan)), _needed(entrant))
        spent += other.spent
        finalists = [name for name in finalists if other.entrants[name].course]
        if not finalists:
            break
        race.compare_on(other, finalists)


def _best(race: Race) -> list[str]:
    """The names of those that are compared."""
    ranked = race.ranked()
    simple = [each for each in ranked if each.simple][:SIMPLE]
    return list(dict.fromkeys(each.plan.name for each in (*ranked[:FINALISTS], *simple)))


def _needed(entrant: Entrant) -> float:
    """The seconds after which an entrant had its figure."""
    return next(seconds for seconds, figure in entrant.course if figure == entrant.course[-1][1])


def _on(race: Race, split: GroupSplit, question: Question, folder: Path, seconds: float) -> Race:
    """A race of the same plans on another split, with what was measured before an interruption."""
    files = {part: (folder / f"{part}.txt").resolve() for part in ("train", "val")}
    for part, names in split._asdict().items():
        write_text(files[part], "\n".join(names) + "\n")
    there = question.with_changes({"source.split": {"files": {part: str(file) for part, file in files.items()}}})
    other = Race(
        folder=folder,
        seconds=seconds,
        source=build_source(there.base()),
        target=race.target,
        plans=[each.plan for each in race.entrants.values() if each.plan.learner["kind"] != BASELINE],
        make_spec=lambda plan, budget: there.spec(plan, target=str(race.target), budget=budget),
        log=EventLog(folder / "choice.jsonl"),
        say=race.say,
    )
    other.restore()
    return other
