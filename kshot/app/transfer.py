"""`kshot transfer`: trained runs on the tasks of other data sets, which neither training nor selection has seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kshot.app.evaluate import evaluate_run
from kshot.app.folder import RunFolder, read_spec
from kshot.app.screen import Screen
from kshot.app.terminal import print_table
from kshot.evaluation.compare import read_report
from kshot.evaluation.intervals import Interval
from kshot.evaluation.per_task import REPORT
from kshot.evaluation.report.formatting import (
    format_difference,
    format_figure,
    format_value,
    learner_name,
    read_figure,
)
from kshot.evaluation.report.parts import Column, Row, Section, Table
from kshot.evaluation.report.report import render_sections
from kshot.evaluation.report.verdict import best_baseline
from kshot.files import check_writable, csv_text, read_json, write_text

OWN, OTHER = "own", "other"
FILES = ("images", "table", "text", "tfrecord")  # kinds of sources that read other files of their kind
DRAWN = ("glyphs", "omniglot")  # kinds whose runs read images
NOTE = (
    "Baselines are tuned on the validation tasks of the run's own data, since no others may be seen before the test. "
    "Differences to the best baseline are paired over the same tasks; their p values are corrected for the number of "
    "baselines by Holm."
)


class Transfer(NamedTuple):
    """The figures of a run on another data set.

    Attributes:
        run, learner: name of the run, and kind of its learner.
        data, shots: name of the data set, and number of support examples (per class, if tasks have classes).
        metric: metric of the run's target.
        figure: figure of the learner over the test tasks.
        baseline: name of the best baseline; None if none was evaluated.
        baseline_figure, difference, p: its figure, and the paired difference of the learner to it.
    """

    run: str
    learner: str
    data: str
    shots: int
    metric: str
    figure: Interval
    baseline: str | None
    baseline_figure: Interval | None
    difference: Interval | None
    p: float | None


def transfer_runs(
    run_dirs: Sequence[Path],
    data: Sequence[Path],
    out: Path,
    *,
    shots: Sequence[int],
    num_tasks: int,
    with_baselines: bool = True,
    resume: bool = False,
) -> list[Transfer]:
    """Evaluate each run on the tasks of each data set with each number of shots, and write tables of all figures.

    Args:
        run_dirs: folders of finished runs.
        data: folders or files of the kind that the runs read; all their classes or groups are test ones.
        out: folder for transfer.html, transfer.csv, and a folder with the report of each evaluation.
        shots: numbers of support examples.
        num_tasks: number of tasks of each evaluation.
        with_baselines: whether to evaluate the baselines too.
        resume: take the evaluations that `out` holds already.

    Raises:
        ValueError: names that are not unique, `out` is not empty, or a run whose source reads no files.
    """
    names = [_unique_names(paths) for paths in (run_dirs, data)]
    sources = {run: other_files(run) for run in run_dirs}  # before any work
    if out.exists() and any(out.iterdir()) and not resume:
        raise ValueError(f"{out} is not empty; choose another --out, or continue with --resume")
    check_writable(out / "transfer.csv")
    rows = []
    for run_dir, run in names[0].items():
        for path, name in names[1].items():
            for count in shots:
                place = out / run / name / f"shots-{count}"
                if not (place / REPORT).exists():
                    shutil.rmtree(place, ignore_errors=True)  # of an interrupted call
                    evaluate_run(
                        run_dir,
                        num_tasks=num_tasks,
                        split="test",
                        as_json=False,
                        out=place,
                        episodes_sha256=None,
                        with_baselines=with_baselines,
                        overrides=[_mixture(*sources[run_dir], path, count)],
                    )
                report = read_report(place)
                if resume and report["protocol"]["num_test_tasks"] != num_tasks:
                    raise ValueError(f"{place} was evaluated on another number of tasks: take that, or another --out")
                rows.append(_row(run, name, count, report))
    write_text(out / "transfer.csv", csv_text(list(_records(rows))))
    table = transfer_table(rows)
    page = [Section("Other data sets", table=table, note=NOTE if with_baselines else "")]
    write_text(out / "transfer.html", render_sections("transfer", "Runs on other data sets", [], page))
    console = Screen()
    print_table(console, table, range(len(table.columns)))
    console.print(f"table: {out / 'transfer.html'}", highlight=False, markup=False, soft_wrap=True)
    return rows


def _unique_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The last part of each path; ValueError if two are the same."""
    names = {path: path.resolve().name for path in paths}
    for path, name in names.items():
        others = [other for other, same in names.items() if same == name and other != path]
        if others:
            raise ValueError(f"{path} and {others[0]} have the same name, by which the table calls them: rename one")
    return names


def other_files(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a run's source, and those of a source of the same shapes that reads other files.

    A run on pixels of a set of its own, such as glyphs, reads folders of images of the same size and colours.

    Raises:
        ValueError: a source that reads no files.
    """
    own = dict(read_spec(run_dir).source.model_dump())
    if own["kind"] in FILES:
        return own, own
    if own["kind"] in DRAWN:
        inputs = read_json(RunFolder(run_dir).shapes)["inputs"]
        other = {name: own[name] for name in ("ways", "queries", "seed") if own.get(name) is not None}
        return own, other | {"kind": "images", "size": inputs[-1], "colour": "grey" if inputs[0] == 1 else "rgb"}
    raise ValueError(f"{run_dir} is a run on {own['kind']}, and transfer takes runs on {', '.join([*FILES, *DRAWN])}")


def _mixture(own: Mapping[str, Any], other: Mapping[str, Any], path: Path, shots: int) -> str:
    """A source, as an override, whose test tasks are all of another data set, and whose others are the run's own."""
    sources = {
        OWN: {**own, "shots": shots},
        OTHER: {**other, "path": str(path.resolve()), "shots": shots, "split": {"only": "test"}},
    }
    return "source=" + json.dumps({"kind": "mixture", "sources": sources, "heldout": {"test": [OTHER]}})


def _row(run: str, data: str, shots: int, report: Mapping[str, Any]) -> Transfer:
    metric = report["metric"]
    best = best_baseline(report["baselines"], metric, report["higher_is_better"])
    paired = (report.get("paired") or {}).get(best[0]) if best else None
    return Transfer(
        run,
        learner_name(report["protocol"].get("learner")),
        data,
        shots,
        metric,
        read_figure(report["test"], metric),
        best[0] if best else None,
        best[1] if best else None,
        read_figure(report["paired"], best[0]) if paired and best else None,
        paired["p_holm"] if paired else None,
    )


def transfer_table(rows: Sequence[Transfer]) -> Table:
    """A row for each data set, number of shots and run; and with several data sets, the mean over them for each run."""
    metrics = {row.metric for row in rows}
    figure = metrics.pop() if len(metrics) == 1 else "figure"
    titles = ("data", "shots", "run", "learner", figure, "best baseline", "its figure", "difference (paired)")
    order = {name: number for number, name in enumerate(dict.fromkeys(row.data for row in rows))}
    lines = [
        Row(
            [
                row.data,
                str(row.shots),
                row.run,
                row.learner,
                format_figure(row.figure),
                "–" if row.baseline is None else row.baseline.replace("_", " "),
                "–" if row.baseline_figure is None else format_figure(row.baseline_figure),
                "–" if row.difference is None else format_difference(row.difference, row.p),
            ]
        )
        for row in sorted(rows, key=lambda row: (order[row.data], row.shots))
    ]
    if len(order) > 1:
        for shots, run, learner in dict.fromkeys((row.shots, row.run, row.learner) for row in rows):
            means = [row.figure.mean for row in rows if (row.shots, row.run) == (shots, run)]
            mean = format_value(sum(means) / len(means))
            lines.append(Row([f"mean of {len(means)}", str(shots), run, learner, mean, "–", "–", "–"], "main"))
    return Table([*map(Column, titles)], lines, "board")


def _records(rows: Sequence[Transfer]) -> Iterator[list[Any]]:
    """The header and the rows of transfer.csv, with unrounded numbers."""
    yield [
        *("data", "shots", "run", "learner", "metric", "mean", "ci95", "num_tasks", "baseline", "baseline_mean"),
        *("difference", "difference_ci95", "p_holm"),
    ]
    for row in rows:
        values = [
            *(row.data, row.shots, row.run, row.learner, row.metric),
            *(row.figure.mean, row.figure.ci95, row.figure.num_tasks),
            row.baseline,
            row.baseline_figure and row.baseline_figure.mean,
            row.difference and row.difference.mean,
            row.difference and row.difference.ci95,
            row.p,
        ]
        yield [None if value != value else value for value in values]
