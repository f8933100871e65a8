"""The report of a run: `report.json` for programs, and `report.html`, a self-contained page."""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.evaluation.by_unit import CLASSES, CONFUSIONS, UNITS
from kshot.evaluation.per_task import REPORT, TASKS
from kshot.evaluation.report.conclusion import conclude
from kshot.evaluation.report.formatting import better, capitalize, format_figure, format_sample, plural, read_figure
from kshot.evaluation.report.narrow import make_narrow
from kshot.evaluation.report.parts import Picture, Section
from kshot.evaluation.report.sections import CAPTIONS, report_sections, tried_sentence
from kshot.evaluation.report.verdict import best_baseline, failed, inference_of, target_on_test, trust_of, verdict_of
from kshot.evaluation.units import count_of
from kshot.files import sha256_of, write_json, write_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


def write_report(
    folder: Path, report: Mapping[str, Any], events: Sequence[Mapping[str, Any]], figures: Mapping[str, Figure]
) -> Path:
    """Write `report.json` and `report.html` into a folder, atomically, and return the path of the page.

    Args:
        folder: folder, created if needed.
        report: `name`, `command`, `outcome`, `sentence`, `reason`, `target`, `metric`, `higher_is_better`, `rounds`,
            `best_round`, `val`, `test`, `baselines`, `baselines_about`, `paired`, `audits`, `worst_tasks`, `shots`,
            `calibration`, `coverage`, `cost`, `seeds`, `tried`, `inference`, `data_check`, `by_class`, `by_label`,
            `by_unit`, `pooled`, `external`, `protocol`, `environment`, `timing`, `kshot`. All but `metric` may be
            missing or None.
        events: events of the run's log; those of kind "resumed" are counted.
        figures: figures by name; those of `CAPTIONS` have a place and caption, others follow.

    Example:
        >>> import tempfile
        >>> write_report(Path(tempfile.mkdtemp()), {"metric": "mse", "rounds": []}, [], {}).name
        'report.html'
    """
    if not report.get("metric"):
        raise ValueError(f"a report needs its 'metric', such as 'accuracy'; it has: {', '.join(report) or 'nothing'}")
    plain = to_json(report)
    if plain.get("audits"):
        plain["trust"] = trust_of(plain).sentence
    pictures, failures = _draw(figures)
    plain["failures"] = [*(plain.get("failures") or []), *failures]
    page = folder / "report.html"
    write_text(page, _html(plain, events, pictures))
    tables = [folder / name for name in (TASKS, UNITS, CLASSES, CONFUSIONS)]
    plain["files"] = {table.name: sha256_of(table) for table in tables if table.exists()}
    write_json(folder / REPORT, plain)
    return page


def to_json(value: Any) -> Any:
    """A value as JSON types: numbers that are not finite become None, and unknown types their `str`."""
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    return str(value)


def _draw(figures: Mapping[str, Figure]) -> tuple[dict[str, Picture], list[dict[str, str]]]:
    """The pictures of figures, in the order of the page, and what failed: no picture costs a run its report."""
    ordered = [name for name in CAPTIONS if name in figures] + [name for name in figures if name not in CAPTIONS]
    pictures, failures = {}, []
    for name in ordered:
        try:
            pictures[name] = picture(name, figures[name])
        except Exception as error:
            logger.exception("the picture %s cannot be drawn", name)
            failures.append({"what": f"the picture {name}", "error": f"{type(error).__name__}: {error}"})
    return pictures, failures


def _html(report: dict[str, Any], events: Sequence[Mapping[str, Any]], pictures: Mapping[str, Picture]) -> str:
    """The page of a report. The template gets finished strings only."""
    metric, higher = report["metric"], bool(report.get("higher_is_better", True))
    test, baselines, protocol = report.get("test"), report.get("baselines") or {}, report.get("protocol") or {}
    best, val = best_baseline(baselines, metric, higher), read_figure(report.get("val"), metric)
    num_resumed = sum(event.get("kind") == "resumed" for event in events)
    notes = [target_on_test(report.get("target"), metric, read_figure(test, metric))] if test else []
    if math.isfinite(val.mean):
        number = report.get("best_round")
        sample = plural(val.num_tasks, "task") + (f", round {number}" if number else "")
        notes.append(f"The validation figure is {format_figure(val)} ({sample}).")
    if any(notes):
        units = count_of(protocol.get("test_units") or 0, protocol.get("unit") or "unit")
        fixed = bool(protocol.get("same_units_in_all_tasks"))
        over = f"the {units} of the tasks" if protocol.get("test_units") and not fixed else "tasks"
        notes.append(f"Figures are means with 95 % intervals over {'seeds' if report.get('seeds') else over}.")
        if fixed:
            notes.append(f"All tasks are of the same {units}: the figures say nothing about others.")
    notes += [f"Audits: {trust_of(report).sentence}."] if report.get("audits") else []
    notes.append(tried_sentence(report))
    conclusion = conclude(report)
    return render(
        Path(__file__).parent / "report.html.j2",
        {
            "title": f"{report.get('name') or 'run'}: kshot report",
            "kicker": f"kshot {report.get('kshot') or ''} report",
            "wide": False,
            "name": report.get("name") or "run",
            "outcome": conclusion.headline,
            "tone": conclusion.tone,
            "sentence": conclusion.sentence,
            "reason": _sentence(report.get("reason") or ""),
            "headline": f"{report.get('split') or 'test'} {metric}, {better(higher)}{_kind(report)}",
            "test": format_figure(read_figure(test, metric)) if test else "",
            "sample": f"({format_sample(test, metric)})",
            "best": best and (best[0], format_figure(best[1]), f"({plural(best[1].num_tasks, 'task')})"),
            "verdict": verdict_of(report),
            "failed": failed(report),
            "note": " ".join(filter(None, notes)),
            "sections": report_sections(report, pictures, num_resumed=num_resumed),
        },
    )


def _kind(report: Mapping[str, Any]) -> str:
    """What a figure must be compared with, if it is of no single inductive learner."""
    members = (report.get("protocol") or {}).get("ensemble")
    parts = [inference_of(report) if inference_of(report) in ("causal", "transductive") else ""]
    parts.append(f"ensemble of {members}" if members else "")
    return "".join(f" · {part}" for part in parts if part)


def render_sections(name: str, title: str, text: Sequence[str], sections: Sequence[Section]) -> str:
    """A page of sections without the head of a report, such as that of `kshot compare`."""
    page = {"title": f"kshot {name}", "kicker": f"kshot {version('kshot')} {name}", "name": title, "text": text}
    return render(Path(__file__).parent / "page.html.j2", page | {"wide": True, "sections": sections})


def render(template: Path, page: Mapping[str, Any]) -> str:
    """Render a template, which may extend `page.html.j2` or include `page.css`."""
    return _environment(template.parent).get_template(template.name).render(page)


@cache
def _environment(folder: Path) -> Environment:
    """What compiles the templates of a folder, once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def picture(name: str, figure: Figure) -> Picture:
    """A figure as data URIs, as it is and for narrow screens: SVG, or PNG if it contains images.

    Browsers would blur images in an SVG. The figure is left in its narrow form.
    """
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    alt = "; ".join(title.replace("\n", " ") for title in titles if title.strip()) or name.replace("_", " ")
    caption = CAPTIONS[name] if name in CAPTIONS else _sentence(name.replace("_", " "))
    engine = figure.get_layout_engine()
    wide = _uri(figure)
    figure.set_layout_engine(engine)
    return Picture(name, wide, alt, caption, _uri(make_narrow(figure)))


def _uri(figure: Figure) -> str:
    """A figure as a data URI. Its layout is made once, where `savefig` would draw everything a second time for it."""
    from matplotlib import rc_context

    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    raster = any(axes.images for axes in figure.axes)
    kind, mime = ("png", "image/png") if raster else ("svg", "image/svg+xml")
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "kshot"}):  # equal figures give equal bytes
        figure.savefig(buffer, format=kind, dpi=200, metadata={"Software": None} if raster else {"Date": None})
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sentence(text: str) -> str:
    """A phrase with a capital letter and a full stop; empty text stays empty."""
    return f"{capitalize(text)}{'' if text.endswith('.') else '.'}" if text else ""
