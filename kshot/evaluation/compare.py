"""Paired comparison of learners on the same episodes, and leaderboards of runs that share their episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from kshot.evaluation.intervals import Difference, OverSeeds, difference, holm, over_seeds
from kshot.evaluation.moments import LEVEL
from kshot.evaluation.per_task import REPORT, TASKS, PerTask, read_tasks
from kshot.evaluation.report.formatting import Figures, format_setting, learner_name, rank_key, read_figure
from kshot.files import DamagedFile, read_json, sha256_of


def paired_difference(
    ours: PerTask | Sequence[PerTask], theirs: PerTask | Sequence[PerTask], metric: str
) -> Difference:
    """The mean difference of two learners on the episodes that both were evaluated on: ours minus theirs.

    Pairing cancels the difficulty of the tasks, so that much smaller differences are significant than by comparing two
    intervals.

    Args:
        ours, theirs: an `Evaluation` of each learner, or one for each of several seeds.
        metric: "accuracy", "mse", or another metric of both.

    Raises:
        ValueError: the episodes differ (one side may have more, if all of the other are its first), or the metric is
            missing.

    Example:
        >>> source = kshot.sources.sinusoids()
        >>> mean = kshot.learners.SupportMean(source.objective)
        >>> scratch = kshot.learners.from_scratch(kshot.models.mlp(1, 1), inner_lr=0.05, objective=source.objective)
        >>> ours, theirs = (kshot.evaluate(learner, source, num_tasks=20) for learner in (scratch, mean))
        >>> difference = paired_difference(ours, theirs, "mse")
        >>> difference.num_tasks, difference.mean < 0
        (20, True)
    """
    sides = [list(side) if isinstance(side, Sequence) else [side] for side in (ours, theirs)]
    evaluations = [*sides[0], *sides[1]]
    first, num_tasks = evaluations[0], min(len(evaluation.episodes) for evaluation in evaluations)
    for evaluation in evaluations:
        for number, (one, other) in enumerate(zip(first.episodes[:num_tasks], evaluation.episodes)):
            if one != other:
                raise ValueError(
                    f"the two were not evaluated on the same episodes: task {number} is {one}… for one and {other}… "
                    "for the other. Evaluate both on the same source with the same seed of tasks"
                )
        if metric not in evaluation.per_task:
            raise ValueError(f"there is no metric {metric!r} to compare, only {', '.join(evaluation.per_task)}")
    mine, yours = ([evaluation.per_task[metric][:num_tasks] for evaluation in side] for side in sides)
    return difference(mine, yours, first.units and first.units.first(num_tasks))


def differences(
    ours: PerTask | Sequence[PerTask], others: Mapping[str, PerTask | Sequence[PerTask]], metric: str
) -> dict[str, dict[str, Any]]:
    """Paired differences to several learners as plain values, with "p_holm" the p value corrected by Holm."""
    paired = {name: paired_difference(ours, other, metric) for name, other in others.items()}
    corrected = holm([each.p for each in paired.values()])
    return {name: each._asdict() | {"p_holm": p} for (name, each), p in zip(paired.items(), corrected)}


@dataclass(frozen=True)
class Entry:
    """A run, or several seeds of one, as an entry of a leaderboard.

    Attributes:
        name: name of the run, or its folder if names are not unique.
        learner, source: kind of the learner, and a short description of the tasks.
        metric, higher_is_better: metric of the ranking; higher is better for an accuracy, not for an error.
        figure, scores: test figure over seeds, and the figures task by task of each.
        inductive: True if no prediction depends on other queries.
        episodes_sha256: hash of the test episodes.
        cost: adapt_ms {"median", "p95"}, num_parameters, adapt_flops…, of the first seed.
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
        behind: paired difference to the best entry; None for the best itself.
        p: p value of that difference, corrected for all pairs of the board since the best is selected from the same
            figures.
    """

    entry: Entry
    behind: Difference | None
    p: float

    @property
    def tied(self) -> bool:
        """Whether the difference to the best is not significant."""
        return self.behind is not None and not self.p < LEVEL


class Board(NamedTuple):
    """Entries that were evaluated by one metric on the same episodes, best first."""

    metric: str
    higher_is_better: bool
    source: str
    episodes_sha256: str
    num_tasks: int
    lines: list[Line]


def compare(folders: Sequence[Path | str]) -> list[Board]:
    """Leaderboards of run folders, the largest first: one for each set of episodes and metric, which are comparable.

    Args:
        folders: folders of finished runs, of several seeds of a run, or of `kshot evaluate --out`.

    Raises:
        ValueError: a folder without a finished run, or no folder.
    """
    entries = [read_entry(Path(folder)) for folder in folders]
    if not entries:
        raise ValueError("there is nothing to compare: give at least one run folder")
    names = [entry.name for entry in entries]
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        unique = entry if names.count(entry.name) == 1 else replace(entry, name=entry.folder)
        groups.setdefault((entry.episodes_sha256, entry.metric), []).append(unique)
    return sorted(map(_rank, groups.values()), key=lambda board: -len(board.lines))


def _rank(entries: list[Entry]) -> Board:
    higher = entries[0].higher_is_better
    ranked = sorted(entries, key=lambda entry: (not entry.trusted, rank_key(entry.figure.mean, higher)))
    best = ranked[0]
    pairs = list(combinations(ranked, 2))
    paired = [paired_difference(other.scores, one.scores, best.metric) for one, other in pairs]
    corrected = holm([each.p for each in paired])
    lines = [Line(best, None, math.nan)]
    lines += [Line(other, each, p) for (one, other), each, p in zip(pairs, paired, corrected) if one is best]
    return Board(best.metric, higher, best.source, best.episodes_sha256, best.figure.num_tasks, lines)


def read_entry(folder: Path) -> Entry:
    """Read the run, or the seeds of a run, in a folder; ValueError if none is finished, or episodes differ."""
    seeds = seed_folders(folder) or [folder]
    reports = [read_report(seed) for seed in seeds]
    first = reports[0]
    metric, protocol = first["metric"], first["protocol"]
    for report, seed in zip(reports, seeds):
        if not report.get("test"):
            raise ValueError(f"{seed} has no test figure: {report.get('sentence') or 'the run produced none'}")
        if report["protocol"]["episodes_sha256"] != protocol["episodes_sha256"] or report["metric"] != metric:
            raise ValueError(
                f"{seed} was evaluated on different episodes, or by a different metric, from {seeds[0]}: they are not "
                "seeds of one run and cannot be pooled"
            )
    return Entry(
        name=first["name"],
        learner=learner_name(protocol.get("learner")),
        source=_source(protocol),
        metric=metric,
        higher_is_better=first["higher_is_better"],
        figure=over_seeds([read_figure(report["test"], metric) for report in reports]),
        inductive=all(report["protocol"]["inductive"] for report in reports),
        episodes_sha256=protocol["episodes_sha256"],
        scores=[read_tasks(seed / TASKS)[0] for seed in seeds],
        cost=first.get("cost") or {},
        folder=str(folder),
        trusted=all(report.get("trusted") is not False for report in reports),
    )


def seed_folders(folder: Path) -> list[Path]:
    """The folders `seed-0`, `seed-1`… of a run with several seeds, sorted by number."""
    folders = [path for path in folder.glob("seed-*") if path.name.removeprefix("seed-").isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("seed-")))


def pooled(figures: Sequence[Figures]) -> dict[str, OverSeeds]:
    """The figures of several seeds pooled: metric -> figure with its interval over seeds."""
    return {metric: over_seeds([read_figure(each, metric) for each in figures]) for metric in figures[0]}


def read_report(folder: Path) -> dict[str, Any]:
    """The report.json of a run folder; ValueError if it, or a file that it names, is missing or damaged."""
    file = folder / REPORT
    if not file.is_file():
        raise ValueError(f"{folder} holds no finished run: it has no {REPORT}")
    report = read_json(file)
    for name, expected in report.get("files", {}).items():
        if sha256_of(folder / name) != expected:
            raise DamagedFile(f"{folder / name} is damaged: it is not what {REPORT} says was written")
    try:
        return {"protocol": report["protocol"], "metric": report["metric"]} | report
    except LookupError as error:
        raise ValueError(f"{file} is not a report of a run ({error})") from None


def _source(protocol: Mapping[str, Any]) -> str:
    """A short description of the tasks, such as "omniglot, 5 ways, 1 shot"."""
    parts = [str(protocol.get("source") or "tasks")]
    for key in ("ways", "shots"):
        if protocol.get(key) is not None:
            text = format_setting(protocol[key], key)
            parts.append(f"{text} {key[:-1] if text == '1' else key}")
    return ", ".join(parts)
