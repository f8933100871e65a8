"""The content of a report as sections of finished strings: built once, rendered on the terminal and as HTML.

`report.json` holds the same entries as plain values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kshot.evaluation.report.breakdown_sections import (
    class_sections,
    finding_table,
    label_section,
    pooled_table,
    unit_section,
    worst_sections,
)
from kshot.evaluation.report.external_section import external_section
from kshot.evaluation.report.formatting import (
    Figures,
    capitalize,
    format_count,
    format_difference,
    format_duration,
    format_figure,
    format_sample,
    format_setting,
    format_value,
    learner_name,
    plural,
    rank_key,
    read_figure,
)
from kshot.evaluation.report.parts import Badge, Column, Pairs, Picture, Row, Section, Table
from kshot.evaluation.report.plan_charts import choice_section
from kshot.evaluation.report.sweep_chart import sweep_section
from kshot.evaluation.report.verdict import inference_of, trust_of
from kshot.learners.ratings.coverage import Coverage

OF_CHOICES = (
    "In each fold a plan was chosen on its validation tasks, for its test alone, so that the figures are of the "
    "choice. For a learner to use on new data, choose once more without folds."
)
CAPTIONS = {
    "baselines": "The learner and baselines without meta-learning, on the first of the same test tasks. The band is "
    "the learner's interval. Whether two differ is decided by the paired differences below, which are more sensitive.",
    "tasks": "Left: figures of single tasks, the learner's filled and the best baseline's in outline. Right: learner "
    "minus baseline on each task that both were evaluated on; the band is the 95 % interval of the mean.",
    "shots": "The same trained learner, without retraining, with more or fewer support examples of the same test "
    "tasks, which differ from those of the figure above.",
    "reliability": "On the diagonal, predictions are calibrated; below it, they are overconfident.",
    "rounds": "Validation after each round, and below it the decision that followed. The target counts as met if "
    "the whole interval satisfies it. The best baseline, if any, is shown by its mean on the test tasks: as a dashed "
    "line, or as an arrow if it is off the chart.",
    "plans": "Each point is a plan when its time was up; dashed, what experience expected of it; dotted, the best "
    "simple baseline. More time went to the better third of the plans, and again to the better third of those.",
    "sweep": "Each point is a trial; hollow ones were stopped early, and the large one was kept.",
    "regret": "Of a learner that chooses among parts, or mixes them, and of each part alone, on the first test tasks. "
    "Zero would be the best part of each task, which nobody knows beforehand; a mixture can be below it.",
    "weights": "How much each part counts on each of the first test tasks, from its support set alone.",
    "learning_curve": "The training loss as recorded (pale) and smoothed.",
    "classification_examples": "The first test tasks. Above: the support images by class; below: query images, "
    "marked ✓ if classified correctly, otherwise ✗ with the number of the predicted class.",
    "confusion": "Rows are true classes, columns predicted ones; the diagonal is the recall. A dash: no task has both.",
    "labels": "The average precision of each label with its 95 % interval; the circle is the share of queries that "
    "have it, which guessing would give.",
    "labelled_examples": "Support images of the first test tasks with their labels; below query images: a label that "
    "was found, one that was missed (in brackets), and one that is wrong (✗).",
    "segmentation_examples": "The first test tasks: a support image with its mask, then query images with their true "
    "mask, and with the predicted one.",
    "units": "The mean over the tasks of each unit, with its 95 % interval if it has several tasks, cut where it "
    "reaches far beyond all means. Circles are the best baseline on the same tasks.",
    "worst_1": "",
    "worst_2": "",
    "worst_3": "",
    "regression_examples": "The first test tasks, before and after gradient steps on the support points.",
    "predictive_bands": "The first test tasks: support points (dark), query points (pale), and the predicted mean and "
    "central 95 %, with the log-likelihood in nats per point.",
}
"""Captions of the figures by name; figures are shown in this order."""

PROTOCOL = ("source", "ways", "shots", "queries", "seed", "task_seed", "num_test_tasks", "num_val_tasks")
"""Protocol entries that come first, in this order."""

PLACED = (
    "plans",
    "sweep",
    "baselines",
    "tasks",
    "shots",
    "reliability",
    "rounds",
    "confusion",
    "labels",
    "regret",
    "weights",
    "units",
    "worst_1",
    "worst_2",
    "worst_3",
)
"""Figures that have a section of their own."""

POOLED = (
    "R² is the share of the variance of the targets that is explained: 1 minus the squared errors over the squared "
    "deviations from the mean of all queries. Within units, the deviations are from the mean of each unit's queries, "
    "which a learner does not know: 0 is as good as that mean."
)

INFERENCE = {
    "": (),
    "inductive": ("Inductive: each query example is predicted on its own, from the support set alone.",),
    "causal": (
        "Causal: the query examples are read in order, and each is predicted from the support set and those before it, "
        "so these figures are not comparable with inductive ones.",
    ),
    "transductive": (
        "Transductive: a prediction may depend on the other query examples of its task, so these figures are not "
        "comparable with inductive ones.",
    ),
}
"""What predictions depend on, if that is known."""

TONES = {"PASSED": "good", "FAILED": "bad", "NOT_APPLICABLE": "continue", "IDLE": "fair"}


def report_sections(
    report: Mapping[str, Any], pictures: Mapping[str, Picture], *, num_resumed: int = 0
) -> list[Section]:
    """The sections of a report as plain values (see `write_report`), without those that have no content."""
    protocol, target = report.get("protocol") or {}, report.get("target")
    named = {name: [picture] for name, picture in pictures.items() if name in PLACED}
    others = [picture for name, picture in pictures.items() if name not in PLACED]
    rounds, constant = round_table(report)
    resumed = "once" if num_resumed == 1 else f"{num_resumed} times"
    sections = [
        Section(
            "What failed",
            ["The learner's figures hold, and these parts of the report are missing."],
            pairs=[(each["what"], each["error"]) for each in report.get("failures") or []],
        ),
        Section(
            "What the check of the data found",
            [
                "An error makes the figures of this page worthless.",
                (report.get("data_check") or {}).get("looked_at") or "",
            ],
            table=finding_table(report),
        ),
        choice_section(report, named.get("plans", [])),
        sweep_section(report, named.get("sweep", [])),
        external_section(report),
        Section("Comparison with baselines", pictures=named.get("baselines", ()), table=result_table(report)),
        Section(
            "Seeds",
            ["The same run file with other seeds: other initial weights and training tasks, the same test episodes."],
            table=part_table(report, "seed"),
        ),
        Section(
            "Folds",
            [
                "A run for each fold: its classes or groups are tested by a learner that was trained on the others.",
                OF_CHOICES if report.get("choice") else "",
            ],
            table=part_table(report, "fold"),
        ),
        Section(
            "Errors in numbers",
            ["Over the queries of all test tasks together, not a mean over tasks."],
            table=pooled_table(report),
            note=POOLED,
        ),
        Section("Parts of the learner", pictures=[*named.get("regret", ()), *named.get("weights", ())]),
        *class_sections(report, named.get("confusion", ())),
        label_section(report, named.get("labels", ())),
        unit_section(report, named.get("units", ())),
        Section(
            "Task by task",
            ["The worst tasks; all of them are in tasks.csv beside this page."] if report.get("worst_tasks") else [],
            named.get("tasks", ()),
            pairs=worst_pairs(report),
        ),
        *worst_sections(report, named),
        Section("Shots", pictures=named.get("shots", ())),
        Section("Calibration", pictures=named.get("reliability", ()), pairs=calibration_pairs(report)),
        Section("Out-of-scope detection", pairs=rejection_pairs(report)),
        Section(
            "Catalogue coverage",
            ["The share of items that are recommended to at least one user, over users of the first test tasks."],
            pairs=coverage_pairs(report),
        ),
        Section(
            "Cost",
            pairs=cost_pairs(report),
            note="Times were measured on the machine below, one task at a time. FLOPs count matrix products, "
            "convolutions and attention, with a multiplication and an addition as two operations.",
        ),
        Section(
            "Rounds and decisions",
            [f"Target: {target}, on validation tasks, for the whole interval."] if target else [],
            named.get("rounds", ()),
            rounds,
            note=f"In every round: {constant}." if constant else "",
        ),
        Section("Figures", pictures=others),
        Section(
            "Protocol",
            [*INFERENCE[inference_of(report)], *filter(None, [_selection(report), tried_sentence(report)])],
            pairs=protocol_pairs(protocol),
        ),
        Section(
            "Audits",
            [
                "Checks of the test evaluation for the silent mistakes of few-shot code.",
                f"{capitalize(trust_of(report).sentence)}.",
            ],
            table=audit_table(report),
        ),
        Section(
            "Time and environment",
            [f"The run was interrupted and resumed from a checkpoint {resumed}."] if num_resumed else [],
            pairs=[*timing_pairs(report), *_flatten(report.get("environment") or {})],
        ),
        Section(
            "How to reproduce",
            code=report.get("command") or "",
            note=f"With kshot {report.get('kshot') or ''} and the environment above. Equal seeds give equal tasks: "
            "compare the hash of the test episodes. The figures of this page are in report.json beside it.",
        ),
    ]
    sections = [each._replace(text=[text for text in each.text if text]) for each in sections]
    return [each for each in sections if each.pictures or each.pairs or each.code or (each.table and each.table.rows)]


def result_table(report: Mapping[str, Any]) -> Table:
    """The learner's figure and those of the baselines, best first, with paired differences."""
    metric, split = report["metric"], report.get("split") or "test"
    test, baselines = report.get("test"), report.get("baselines") or {}
    paired, about = report.get("paired") or {}, report.get("baselines_about") or {}
    higher = report.get("higher_is_better", True)

    def row(name: str, figures: Figures, description: str, difference: str, emphasis: str = "") -> Row:
        value = format_figure(read_figure(figures, metric))
        return Row([name, value, format_sample(figures, metric), difference, description], emphasis)

    kind = learner_name((report.get("protocol") or {}).get("learner")) or "learner"
    rows = [row(kind, test, about.get("learner") or "This run, meta-learned.", "", "main")] if test else []
    for name in sorted(baselines, key=lambda name: rank_key(read_figure(baselines[name], metric).mean, higher)):
        difference = format_difference(read_figure(paired, name), paired[name].get("p_holm")) if name in paired else ""
        rows.append(row(name.replace("_", " "), baselines[name], about.get(name) or "", difference))
    kinds = {f"{split} {metric}": "figure", "sample": "name", "learner − baseline (paired)": "name"}
    columns = [Column("learner", "name"), *(Column(*each) for each in kinds.items()), Column("description", "text")]
    return Table(columns, rows)


def part_table(report: Mapping[str, Any], part: str) -> Table:
    """A row for each seed or fold (`part`) of a report on several."""
    metric, split = report["metric"], report.get("split") or "test"
    titles = {part: "n", f"{split} {metric}": "figure", "best round": "n", "time": "n", "outcome": "text"}
    parts, rows = report.get(f"{part}s") or [], []
    if chosen := any(each.get("kept") for each in parts):
        titles["kept"] = titles.pop("outcome")
    for each in parts:
        figure = format_figure(read_figure(each.get("test"), metric))
        best = "–" if each.get("best_round") is None else str(each["best_round"])
        outcome = (each.get("outcome") or "").replace("_", " ").lower()
        last = (each.get("kept") or "–").replace("_", " ") if chosen else outcome
        rows.append(Row([str(each[part]), figure, best, format_duration(each.get("seconds")), last]))
    return Table([Column(*column) for column in titles.items()], rows)


def round_table(report: Mapping[str, Any]) -> tuple[Table, str]:
    """A row for each round, with the settings that differ between rounds; and those that do not, as a phrase."""
    metric, best, rounds = report["metric"], report.get("best_round"), report.get("rounds") or []
    settings = [entry.get("settings") or {} for entry in rounds]
    names = list(dict.fromkeys(name for each in settings for name in each))
    varying = [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]
    constant = ", ".join(f"{name} {format_setting(settings[0][name])}" for name in names if name not in varying)
    rows = []
    for entry, values in zip(rounds, settings):
        decision, loss = entry.get("decision") or {}, entry.get("train_loss")
        figure, action = read_figure(entry.get("val"), metric), decision.get("action") or ""
        val = "diverged" if entry.get("diverged") else "none"
        if math.isfinite(figure.mean):
            val = format_figure(figure) + (", selected" if entry.get("number") == best else "")
        cells: list[str | Badge] = [str(entry.get("number", "")), str(entry.get("step", ""))]
        cells += ["–" if loss is None else f"{loss:.4g}", val]
        cells += [format_setting(values.get(name)) for name in varying]
        cells += [format_duration(entry.get("seconds")), Badge(action, action) if action else ""]
        cells.append(capitalize(decision.get("reason") or entry.get("diverged") or ""))
        rows.append(Row(cells, "main" if entry.get("number") == best else ""))
    columns = [Column(title, "n") for title in ("round", "steps", "train loss")]
    columns += [Column(f"validation {metric}"), *(Column(title, "n") for title in (*varying, "time"))]
    return Table([*columns, Column("decision"), Column("reason", "reason")], rows, "rounds"), constant


def audit_table(report: Mapping[str, Any]) -> Table:
    rows = []
    for audit in report.get("audits") or []:
        tolerance = audit.get("tolerance")
        passes = "" if tolerance is None else f" Passes up to {tolerance:.3g}: {audit['reason']}."
        badge = Badge(audit["result"].replace("_", " ").lower(), TONES[audit["result"]])
        rows.append(Row([audit["name"], badge, audit["question"], audit["finding"] + passes]))
    return Table([Column("audit"), Column("result"), Column("question", "text"), Column("finding", "text")], rows)


def worst_pairs(report: Mapping[str, Any]) -> Pairs:
    pairs = []
    for each in report.get("worst_tasks") or []:
        names = (each.get("title") or "").partition(": ")[2]
        figure = format_value(each.get(report["metric"]))
        pairs.append((f"task {each['task']}", ", ".join(filter(None, [figure, names, f"episode {each['episode']}…"]))))
    return pairs


def calibration_pairs(report: Mapping[str, Any]) -> Pairs:
    calibration = report.get("calibration") or {}
    if not calibration:
        return []
    classes = calibration.get("kind") == "classes"
    label = "expected calibration error" if classes else "mean gap of coverage"
    pairs = [(label, format_value(calibration.get("error")))]
    for name, label in (("nll", "negative log-likelihood, nats"), ("brier", "Brier score")):
        if calibration.get(name):
            pairs.append((label, format_figure(read_figure(calibration, name))))
    points = {} if classes else {point["expected"]: point["observed"] for point in calibration.get("points") or []}
    return pairs + [(f"targets within the {p:.0%} band", f"{points[p]:.1%}") for p in (0.5, 0.95) if p in points]


def cost_pairs(report: Mapping[str, Any]) -> Pairs:
    cost = report.get("cost") or {}

    def times(figure: dict[str, Any]) -> str:
        return f"{figure['median']:.3g} ms, 95 % below {figure['p95']:.3g} ms"

    entries = [
        ("parameters", "num_parameters", "{:,}".format),
        ("state size", "state_size", lambda n: f"{n:,} ({format_count(cost.get('state_bytes') or 0, 'B')})"),
        ("time to adapt to a task", "adapt_ms", times),
        ("time to predict its queries", "predict_ms", times),
        ("FLOPs to adapt", "adapt_flops", format_count),
        ("FLOPs to predict", "predict_flops", format_count),
    ]
    return [(label, form(cost[key])) for label, key, form in entries if cost.get(key) is not None]


def rejection_pairs(report: Mapping[str, Any]) -> Pairs:
    rejection = report.get("rejection") or {}
    if not rejection:
        return []
    names = ("auroc", "fpr95", "rejected_inside", "rejected_outside")
    auroc, fpr95, inside, outside = (format_figure(read_figure(rejection, name)) for name in names)
    return [
        ("AUROC", f"{auroc} by the {rejection['score']} score"),
        ("accepted out of scope where 95 % in scope are accepted", fpr95),
        (f"rejected above {rejection['threshold']:.4g}", f"{outside} out of scope, {inside} in scope"),
    ]


def coverage_pairs(report: Mapping[str, Any]) -> Pairs:
    return [(name.replace("_", " "), str(Coverage(**each))) for name, each in (report.get("coverage") or {}).items()]


def timing_pairs(report: Mapping[str, Any]) -> Pairs:
    timing = report.get("timing") or {}
    labels = {"seconds": "total time", "pretrain_seconds": "of which pretraining"}
    return [(label, format_duration(timing[key])) for key, label in labels.items() if timing.get(key) is not None]


def protocol_pairs(protocol: Mapping[str, Any]) -> Pairs:
    keys = [*PROTOCOL, *(key for key in protocol if key not in PROTOCOL and key not in ("inductive", "inference"))]
    return [
        (key.removeprefix("num_").replace("_", " "), format_setting(protocol[key], key))
        for key in keys
        if protocol.get(key) is not None
    ]


def tried_sentence(report: Mapping[str, Any]) -> str:
    """How many runs on the same data this figure may be the best of; empty if it is the only one."""
    counts = report.get("tried") or {}
    if counts.get("runs", 1) < 2:
        return ""
    keys = {"seeds": "seed", "task_seeds": "task seed", "configurations": "configuration"}
    kinds = ", ".join(plural(counts[key], name) for key, name in keys.items())
    return (
        f"This is one of {counts['runs']} runs on these data in the folder ({kinds}), and {counts['tested']} of the "
        "others have a test figure: the best of several is higher than what a new test would give."
    )


def _selection(report: Mapping[str, Any]) -> str:
    members = (report.get("protocol") or {}).get("ensemble")
    kind = f"an ensemble of {members}" if members else "no ensemble"
    for part in ("seed", "fold"):
        if report.get(f"{part}s"):
            return f"One checkpoint for each {part}, {kind}: the best of its rounds on validation tasks."
    number = report.get("best_round")
    if number is None:
        return "No round gave a usable checkpoint." + ("" if report.get("test") else " The test tasks were not used.")
    selection = f"One checkpoint, {kind}: that of round {number}, selected on validation tasks."
    return f"{selection} The test tasks were used once, at the end." if report.get("test") else selection


def _flatten(entries: Mapping[str, Any], prefix: str = "") -> Pairs:
    """Nested entries as labels and values, without empty ones."""
    pairs: Pairs = []
    for key, value in entries.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value, f"{prefix}{key} ")
        elif (text := format_setting(value)) != "":
            pairs.append((f"{prefix}{key}".replace("_", " "), text))
    return pairs
