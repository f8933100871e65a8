"""Sections of a report on where a learner fails: findings in the data, by class, by unit, and the worst tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kshot.evaluation.report.formatting import capitalize, format_figure, format_value, learner_name, read_figure
from kshot.evaluation.report.parts import Badge, Column, Picture, Row, Section, Table
from kshot.evaluation.report.verdict import best_baseline

ROWS = 15
"""Largest number of classes, pairs or units in a table of the page; the CSV files beside it have all."""

RECALL = (
    "Recall is the share of the queries of a class that were classified correctly, with its interval over the tasks of "
    "the class, or their units. All are in classes.csv beside this page."
)
PAIRS = (
    "Most often first. The share is of the queries of the true class in tasks that have both. All are in "
    "confusions.csv beside this page."
)

PRECISION = (
    "The average precision of the queries of a task, ranked by the label, is a mean over the tasks with a query that "
    "has it; guessing gives the share of such queries. Found and false are the shares of the queries with and without "
    "the label for which it is predicted. All are in labels.csv beside this page."
)

RANKS = ("the worst", "the second worst", "the third worst")

SEVERITY = {"warning": "fair", "error": "bad"}


def finding_table(report: Mapping[str, Any]) -> Table:
    """What the check of the data found, errors first."""
    findings = (report.get("data_check") or {}).get("findings") or []
    rows = [
        Row([each["check"], Badge(each["severity"], SEVERITY[each["severity"]]), each["sentence"]]) for each in findings
    ]
    return Table([Column("check"), Column("severity"), Column("finding", "text")], rows)


def pooled_table(report: Mapping[str, Any]) -> Table:
    """rmse and R² of the learner and the baselines over all queries, a row for each target."""
    pooled = report.get("pooled") or {}
    kind = learner_name((report.get("protocol") or {}).get("learner")) or "learner"
    several = any(len(targets) > 1 for targets in pooled.values())
    rows = []
    for name, targets in pooled.items():
        for each in targets:
            figures = [
                format_figure(read_figure(each, key)) if each.get(key) else "–" for key in ("rmse", "r2", "r2_within")
            ]
            cells = [
                kind if name == "learner" else name.replace("_", " "),
                *[each["target"]] * several,
                *figures,
                read_figure(each, "rmse").sample,
            ]
            rows.append(Row(cells, "main" if name == "learner" else ""))
    unit = ((report.get("protocol") or {}).get("unit")) or "task"
    titles = ["learner", *["target"] * several, "rmse", "R²", f"R² within a {unit}", "sample"]
    return Table([Column(title, "name") for title in titles], rows)


def class_sections(report: Mapping[str, Any], pictures: Sequence[Picture]) -> list[Section]:
    """The recall by class, and the pairs that were confused most often, or their matrix."""
    by_class = report.get("by_class") or {}
    classes, confusions = by_class.get("classes") or [], by_class.get("confusions") or []
    rows = [
        Row([
            each["name"], format_figure(read_figure(each, "recall")), f"{each['num_queries']:,}",
            each["mistaken_for"] or "–",
        ])
        for each in classes[:ROWS]
    ]  # fmt: skip
    columns = [
        Column("class", "name"),
        Column("recall"),
        Column("queries", "n"),
        Column("most often mistaken for", "name"),
    ]
    pairs = [
        Row([each["true"], each["predicted"], f"{each['times']:g}", f"{each['share']:.1%}"])
        for each in confusions[:ROWS]
    ]
    of_pairs = [
        Column("true class", "name"),
        Column("predicted class", "name"),
        Column("times", "n"),
        Column("share", "n"),
    ]
    most = (
        f"The {len(rows)} classes with the lowest recall of {len(classes)}"
        if len(rows) < len(classes)
        else "All classes"
    )
    return [
        Section("Errors by class", [f"{most}, worst first. {RECALL}"], pictures, Table(columns, rows, "flow")),
        Section("Classes that were confused", [PAIRS], table=Table(of_pairs, pairs, "flow")),
    ]


def label_section(report: Mapping[str, Any], pictures: Sequence[Picture]) -> Section:
    """The labels with the lowest average precision, where an example may have several."""
    labels = report.get("by_label") or []
    rows = [
        Row([
            each["name"], format_figure(read_figure(each, "average_precision")), f"{each['share']:.1%}",
            f"{each['found']:.1%}", f"{each['false']:.1%}", str(read_figure(each, "average_precision").num_tasks),
        ])
        for each in labels[:ROWS]
    ]  # fmt: skip
    columns = [Column("label", "name"), Column("average precision")]
    columns += [Column(title, "n") for title in ("share", "found", "false", "tasks")]
    most = f"The {len(rows)} labels with the lowest of {len(labels)}" if len(rows) < len(labels) else "All labels"
    return Section("Errors by label", [f"{most}, worst first. {PRECISION}"], pictures, Table(columns, rows, "flow"))


def unit_section(report: Mapping[str, Any], pictures: Sequence[Picture]) -> Section:
    """The units with the worst figures, and the best baseline's figures there."""
    about, metric = report.get("by_unit") or {}, report["metric"]
    units, unit = about.get("units") or [], about.get("unit") or "unit"
    best = best_baseline(report.get("baselines"), metric, report.get("higher_is_better", True))
    rows = []
    for each in units[:ROWS]:
        theirs = [format_value(each["others"].get(best[0]))] if best else []
        figure = read_figure(each, "figure")
        rows.append(Row([each["name"], format_figure(figure), *theirs, str(figure.num_tasks)]))
    titles = [unit, metric, *([f"{metric} of {best[0].replace('_', ' ')}"] if best else [])]
    total = about.get("num_units") or len(units)
    most = f"The {len(rows)} worst of {total}" if len(rows) < total else f"All {total}"
    text = f"{most}; units.csv beside this page has all, with the figures of every baseline."
    return Section(
        f"Errors by {unit}", [text], pictures, Table([*map(Column, titles), Column("tasks", "n")], rows, "flow")
    )


def worst_sections(report: Mapping[str, Any], named: Mapping[str, Sequence[Picture]]) -> list[Section]:
    """A section for each of the worst tasks that has a picture or examples."""
    sections = []
    for number, task in enumerate(report.get("worst_tasks") or [], 1):
        examples = task.get("examples") or {}
        table = None
        if examples:
            kinds = ["text" if len(max(cells, key=len)) > 40 else "name" for cells in zip(*examples["rows"])]
            columns = [Column(title, kind) for title, kind in zip(examples["header"], kinds)]
            table = Table(columns, [Row(cells) for cells in examples["rows"]], "flow")
        value = task.get(report["metric"])
        figure = "not finite" if value is None or not math.isfinite(value) else format_value(value)
        title = capitalize(task.get("title") or f"task {task['task']}")
        rank = RANKS[number - 1] if number <= len(RANKS) else f"number {number} of the worst"
        text = [f"{report['metric']} {figure}, {rank}. {examples.get('note') or ''}".strip()]
        sections.append(Section(title, text, named.get(f"worst_{number}", ()), table))
    return sections
