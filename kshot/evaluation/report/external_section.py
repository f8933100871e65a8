"""What a pretrained encoder had seen before the run, and three figures that tell what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kshot.evaluation.report.formatting import format_figure, format_sample, read_figure
from kshot.evaluation.report.parts import Column, Row, Section, Table

FROZEN, WITHOUT = ("class_mean_cosine", "prototype"), "without_pretraining"
"""The baselines that are shown beside the learner: class means of features, or those of masks, and the network."""


def external_section(report: Mapping[str, Any]) -> Section:
    """The section of a report on its pretrained encoder; without content if there is none."""
    external = report.get("external") or {}
    title = "What the encoder had seen"
    if not external:
        return Section(title)
    seen = external.get("trained_on")
    known = f"was trained on {seen}" if seen else "says nothing of what it was trained on"
    text = [
        f"The encoder {external['encoder']} {known}. Classes of the test split may have been in it, even the images "
        "themselves: what it is worth on classes that nobody has seen before, these figures do not show."
    ]
    metric, baselines, about = report["metric"], report.get("baselines") or {}, report.get("baselines_about") or {}
    beside = report.get("beside") or report.get("test")
    frozen = next((name for name in FROZEN if name in baselines), "")
    cases = [
        ("frozen encoder, class means", baselines.get(frozen), f"no meta-learning: {about.get(frozen) or ''}"),
        ("this run", beside, about.get("learner") or ""),
        ("without the encoder", baselines.get(WITHOUT), about.get(WITHOUT) or ""),
    ]
    columns = [Column("", "name"), Column(f"{report.get('split') or 'test'} {metric}", "figure")]
    columns += [Column("sample", "name"), Column("what it is", "text")]
    rows = [
        Row([name, format_figure(read_figure(figures, metric)), format_sample(figures, metric), what], tone)
        for name, figures, what in cases
        if figures
        for tone in ["main" if name == "this run" else ""]
    ]
    note = "The same test tasks for all." if WITHOUT in baselines else "No network was trained without the encoder."
    return Section(title, text, table=Table(columns, rows), note=note)
