"""Comparing learners on the very same episodes, and leaderboards that rank nothing else together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from kshot.evaluation.intervals import LEVEL, Difference, OverSeeds, difference, holm, over_seeds
from kshot.evaluation.per_task import TASKS, PerTask, read_tasks
from kshot.evaluation.report.verdict import Figures, read


def paired_difference(
    ours: PerTask | Sequence[PerTask], theirs: PerTask | Sequence[PerTask], metric: str
) -> Difference:
    """How much two learners differ on the episodes that both were scored on: ours minus theirs, ± a 95 % interval.

    The tasks' own difficulty cancels, so that much smaller differences are seen than by comparing two intervals.

    Args:
        ours: an `Evaluation`, or one for each of several seeds.
        theirs: the same of the other.
        metric: "accuracy", "mse", or another that both have.

    Raises:
        ValueError: they were scored on other episodes; one may have more tasks, if all of the other are its first.

    Example:
        >>> source = kshot.sources.sinusoids()
        >>> mean = kshot.learners.SupportMean(source.objective)
        >>> scratch = kshot.learners.from_scratch(kshot.models.mlp(1, 1), inner_lr=0.05, objective=source.objective)
        >>> ours, theirs = (kshot.evaluate(learner, source, tasks=20) for learner in (scratch, mean))
        >>> found = paired_difference(ours, theirs, "mse")
        >>> found.tasks, found.mean + found.ci95 < 0
        (20, True)
    """
    sides = [_seeds(ours), _seeds(theirs)]
    every = [*sides[0], *sides[1]]
    common = min(len(each.episodes) for each in every)
    for each in every[1:]:
        for number, (one, other) in enumerate(zip(every[0].episodes[:common], each.episodes)):
            if one != other:
                raise ValueError(
                    f"the two were not scored on the same episodes: task {number} is {one}… for the one and {other}… "
                    "for the other. Their difference would be one of tasks, too; evaluate both on the same source, "
                    "with the same seed of tasks"
                )
    for each in every:
        if metric not in each.per_task:
            raise ValueError(f"there is no {metric!r} to compare, only {', '.join(each.per_task)}")
    mine, yours = ([each.per_task[metric][:common] for each in side] for side in sides)
    subjects = every[0].subjects
    return difference(mine, yours, None if subjects is None else subjects[:common])


def differences(
    ours: PerTask | Sequence[PerTask], others: Mapping[str, PerTask | Sequence[PerTask]], metric: str
) -> dict[str, dict[str, Any]]:
    """The paired difference to each of several others, as plain values, p values corrected by Holm as "p_holm"."""
    found = {name: paired_difference(ours, other, metric) for name, other in others.items()}
    corrected = holm([each.p for each in found.values()])
    return {name: each._asdict() | {"p_holm": p} for (name, each), p in zip(found.items(), corrected)}


def _seeds(side: PerTask | Sequence[PerTask]) -> list[PerTask]:
    return list(side) if isinstance(side, Sequence) else [side]


@dataclass(frozen=True)
class Entry:
    """A run, or several seeds of one, as a leaderboard shows it.

    Attributes:
        name: of the run, or its folder where names are not unique.
        learner: its kind.
        source: its tasks, in words.
        metric: what it was judged by.
        higher_is_better: True for an accuracy, False for an error.
        figure: over seeds.
        inductive: True if no prediction depends on other queries.
        episodes_sha256: of the test episodes.
        scores: of each seed, task by task.
        cost: adapt_ms {"median", "p95"}, parameters, adapt_flops…, of the first seed.
        folder: where it lies.
        trusted: False if it failed an audit; it is then ranked behind all others.
    """

    name: str
    learner: str
    source: str
    metric: str
    higher_is_better: bool
    figure: OverSeeds
    inductive: bool
    episodes_sha256: str
    scores: list[PerTask]
    cost: dict[str, Any]
    folder: str
    trusted: bool = True


class Line(NamedTuple):
    """A line of a leaderboard.

    Attributes:
        entry: what was scored.
        behind: its paired difference to the best; None for the best itself.
        p: of that difference, corrected for all pairs on the board, since the best one is picked from the same figures.
    """

    entry: Entry
    behind: Difference | None
    p: float

    @property
    def tied(self) -> bool:
        """Whether no difference to the best is shown."""
        return self.behind is not None and not self.p < LEVEL


class Board(NamedTuple):
    """Entries that were scored by one metric on the same episodes, the best first."""

    metric: str
    higher_is_better: bool
    source: str
    episodes_sha256: str
    tasks: int
    lines: list[Line]


def compare(folders: Sequence[Path | str]) -> list[Board]:
    """Leaderboards over run folders: one for each set of episodes and metric, since others do not compare.

    Args:
        folders: of finished runs, of several seeds of a run, or what `kshot evaluate --out` wrote.

    Raises:
        ValueError: a folder without a finished run, or none at all.
    """
    entries = [read_entry(Path(folder)) for folder in folders]
    if not entries:
        raise ValueError("there is nothing to compare: give at least one run folder")
    names = [entry.name for entry in entries]
    return leaderboards(
        [entry if names.count(entry.name) == 1 else replace(entry, name=entry.folder) for entry in entries]
    )


def leaderboards(entries: Sequence[Entry]) -> list[Board]:
    """Entries grouped by episodes and metric, each group ranked; the largest group comes first."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.episodes_sha256, entry.metric), []).append(entry)
    boards = [_board(group) for group in groups.values()]
    return sorted(boards, key=lambda board: -len(board.lines))


def _board(entries: list[Entry]) -> Board:
    higher = entries[0].higher_is_better
    worst = -math.inf if higher else math.inf
    ranked = sorted(entries, key=lambda e: e.figure.mean if math.isfinite(e.figure.mean) else worst, reverse=higher)
    ranked.sort(key=lambda entry: not entry.trusted)
    metric = ranked[0].metric
    pairs = list(combinations(range(len(ranked)), 2))
    found = [paired_difference(ranked[b].scores, ranked[a].scores, metric) for a, b in pairs]
    corrected = holm([each.p for each in found])
    lines = [Line(ranked[0], None, math.nan)]
    lines += [Line(ranked[b], each, p) for (a, b), each, p in zip(pairs, found, corrected) if a == 0]
    first = ranked[0]
    return Board(metric, higher, first.source, first.episodes_sha256, first.figure.tasks, lines)


def read_entry(folder: Path) -> Entry:
    """The run, or the seeds of a run, that lie in a folder.

    Raises:
        ValueError: no finished run, or seeds that were scored on other episodes.
    """
    seeds = seed_folders(folder) or [folder]
    reports = [read_report(seed) for seed in seeds]
    first = reports[0]
    metric = first["metric"]
    for report, seed in zip(reports, seeds):
        if not report.get("test"):
            raise ValueError(f"{seed} has no test figure: {report.get('sentence') or 'the run gave none'}")
        other = report["protocol"]["episodes_sha256"]
        if other != first["protocol"]["episodes_sha256"] or report["metric"] != metric:
            raise ValueError(
                f"{seed} was scored on other episodes, or by another metric, than {seeds[0]}: they are no seeds of one "
                "run, and cannot be pooled"
            )
    protocol = first["protocol"]
    return Entry(
        name=first["name"],
        learner=(protocol.get("learner") or {}).get("kind") or "",
        source=_tasks(protocol),
        metric=metric,
        higher_is_better=first["higher_is_better"],
        figure=over_seeds([read(report["test"], metric) for report in reports]),
        inductive=all(report["protocol"]["inductive"] for report in reports),
        episodes_sha256=protocol["episodes_sha256"],
        scores=[read_tasks(seed / TASKS)[0] for seed in seeds],
        cost=first.get("cost") or {},
        folder=str(folder),
        trusted=all(report.get("trusted") is not False for report in reports),
    )


def seed_folders(folder: Path) -> list[Path]:
    """The folders `seed-0`, `seed-1`… in the folder of a run of several seeds, by their number."""
    found = [path for path in folder.glob("seed-*") if path.name.removeprefix("seed-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("seed-")))


def pooled(figures: Sequence[Figures]) -> dict[str, OverSeeds]:
    """The figures of several seeds as one: metric -> figure with its interval over seeds."""
    return {metric: over_seeds([read(each, metric) for each in figures]) for metric in figures[0]}


def read_report(folder: Path) -> dict[str, Any]:
    """The report.json of a run folder.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    file = folder / "report.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no finished run: there is no report.json in it")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        return {"protocol": report["protocol"], "metric": report["metric"]} | report
    except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError) as error:
        raise ValueError(f"{file} is no report that kshot wrote ({error})") from None


def _tasks(protocol: Mapping[str, Any]) -> str:
    """The tasks in a few words, such as "omniglot, 5 ways, 1 shots"."""
    parts = [str(protocol.get("source") or "tasks")]
    for key in ("ways", "shots"):
        size = protocol.get(key)
        if size is not None:
            text = " to ".join(map(str, size)) if isinstance(size, list) else str(size)
            parts.append(f"{text} {key[:-1] if text == '1' else key}")
    return ", ".join(parts)
