"""The report of a run: `report.json` for programs, and `report.html`, one page that needs nothing but a browser."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kshot.evaluation.coverage import Coverage
from kshot.evaluation.intervals import Interval
from kshot.evaluation.per_task import write
from kshot.evaluation.report.verdict import Figures, best_baseline, difference_to, failed, over, read, verdict, written
from kshot.evaluation.target import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["verdict", "write_report"]

CAPTIONS = {
    "baselines": "The learner among baselines that do no meta-learning, on the first of the same test tasks. The band "
    "is the learner's interval. Whether two differ is told by the paired differences below, which see more.",
    "tasks": "Left, the figures of single tasks, the learner's filled and the best baseline's in outline. Right, the "
    "learner less that baseline on each task that both were scored on; the band is the 95 % interval of the mean.",
    "shots": "One trained learner, not trained again, given more or fewer support examples of the same test tasks. "
    "They are other tasks than those of the figure above.",
    "reliability": "On the diagonal, predictions are as sure as they may be; below it, surer than they may be.",
    "rounds": "Validation after each round, and below it the decision that was taken. The target counts as met when "
    "the whole interval is on its right side. The best baseline, if there is one, is given by its mean on the test "
    "tasks: a dashed line, or an arrow to where it lies.",
    "learning_curve": "The training loss as recorded (pale) and smoothed.",
    "classification_examples": "The first test tasks. Above, the support images that the learner adapted to, by class; "
    "below, query images: ✓ right, ✗ with the number of the class it was taken for.",
    "regression_examples": "The first test tasks, before and after gradient steps on the support points.",
    "predictive_bands": "The first test tasks: support points (dark), query points (pale), and what is predicted of "
    "them: mean and central 95 %, with the log-likelihood in nats a point.",
}
"""What stands under a figure of a known name; the order is that of the page."""

PROTOCOL = {
    "source": "source",
    "ways": "ways",
    "shots": "shots",
    "queries": "queries",
    "seed": "seed",
    "task_seed": "seed of the tasks",
    "num_test_tasks": "test tasks",
    "num_val_tasks": "validation tasks",
    "episodes_sha256": "hash of the test episodes",
}
"""Protocol entries that come first, in this order, and what to call them."""


class Row(NamedTuple):
    """A line of the table of learner and baselines."""

    name: str
    figure: str
    num_tasks: int
    difference: str
    about: str
    ours: bool


class Picture(NamedTuple):
    """A figure as the page holds it."""

    name: str
    uri: str
    alt: str
    caption: str


def write_report(
    folder: Path, report: Mapping[str, Any], events: Sequence[Mapping[str, Any]], figures: Mapping[str, Figure]
) -> Path:
    """Write `report.json` and `report.html` into a folder, each beside its place first and then renamed.

    Args:
        folder: made if need be.
        report: what the run found: `name`, `command`, `outcome`, `sentence`, `reason`, `target`, `metric`,
            `higher_is_better`, `rounds`, `best_round`, `val`, `test`, `baselines`, `baselines_about`, `paired`,
            `audits`, `worst_tasks`, `shots`, `calibration`, `coverage`, `cost`, `seeds`, `protocol`, `environment`,
            `timing`, `kshot`. All but `metric` may be missing or None.
        events: of the run's experience; they tell how often it was interrupted.
        figures: by name; those named in `CAPTIONS` find their place and caption, others follow.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: a report that does not say its metric.

    Example:
        >>> import tempfile
        >>> write_report(Path(tempfile.mkdtemp()), {"metric": "mse", "rounds": []}, [], {}).name
        'report.html'
    """
    if not report.get("metric"):
        raise ValueError(f"a report needs its 'metric', such as 'accuracy'; it has: {', '.join(report) or 'nothing'}")
    folder.mkdir(parents=True, exist_ok=True)
    plain = to_json(report)
    write(folder / "report.json", json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    page = folder / "report.html"
    write(page, _html(plain, events, figures))
    return page


def to_json(value: Any) -> Any:
    """The same value as JSON knows it: numbers that are not finite become None, what it does not know its `str`."""
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


def _html(report: dict[str, Any], events: Sequence[Mapping[str, Any]], figures: Mapping[str, Figure]) -> str:
    return render(Path(__file__).parent / "report.html.j2", _page(report, events, figures))


def render(template: Path, page: Mapping[str, Any]) -> str:
    """A page in the common look, from a template that may include `page.css`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(template.name).render(page)


def _page(report: dict[str, Any], events: Sequence[Mapping[str, Any]], figures: Mapping[str, Figure]) -> dict[str, Any]:
    """All that the template shows, as finished strings: the template decides nothing."""
    metric, higher = report["metric"], bool(report.get("higher_is_better", True))
    test, baselines, protocol = report.get("test"), report.get("baselines") or {}, report.get("protocol") or {}
    found, best = read(test, metric), best_baseline(baselines, metric, higher)
    number, rounds = report.get("best_round"), report.get("rounds") or []
    ordered = [name for name in CAPTIONS if name in figures] + [name for name in figures if name not in CAPTIONS]
    columns, constant = _settings(rounds)
    val = read(report.get("val"), metric)
    return {
        "name": report.get("name") or "run",
        "version": report.get("kshot") or "",
        "outcome": (report.get("outcome") or "").replace("_", " ").lower(),
        "tone": {"TARGET_MET": "good", "DIVERGED": "bad"}.get(report.get("outcome") or "", "fair"),
        "sentence": report.get("sentence") or "",
        "reason": _capital(report.get("reason") or ""),
        "metric": metric,
        "better": "higher is better" if higher else "lower is better",
        "test": written(found) if test else "",
        "test_of": f"({over(test, metric)})",
        "split": report.get("split") or "test",
        "best": best and {"name": best[0], "figure": written(best[1]), "of": f"({_count(best[1].num_tasks, 'task')})"},
        "means": _means(bool(report.get("seeds")), protocol.get("test_subjects")),
        "val": written(val) if math.isfinite(val.mean) else "",
        "val_of": f"({_count(val.num_tasks, 'task')}" + (f", round {number})" if number else ")"),
        "verdict": verdict(test, baselines, metric, higher, report.get("paired"), failed(report)),
        "failed": failed(report),
        "audits": [_audit(audit) for audit in report.get("audits") or []],
        "target": report.get("target") or "",
        "on_test": _on_test(report.get("target"), metric, found) if test else "",
        "rows": _rows(report, test, baselines),
        "inductive": _inductive(protocol.get("inductive")),
        "choice": _choice(number, bool(test), bool(report.get("seeds"))),
        "seeds": _seeds(report, metric),
        "worst": [
            (f"task {each['task']}", f"{written(_alone(each.get(metric)))}, episode {each['episode']}…")
            for each in report.get("worst_tasks") or []
        ],
        "calibration": _calibration(report.get("calibration") or {}),
        "rejection": rejection_lines(report.get("rejection") or {}),
        "coverage": coverage_lines(report.get("coverage") or {}),
        "cost": cost_lines(report.get("cost") or {}),
        "protocol": _protocol(protocol),
        "columns": columns,
        "constant": constant,
        "rounds": [_round(entry, metric, columns, entry.get("number") == number) for entry in rounds],
        "timing": _timing(report.get("timing") or {}),
        "resumed": sum(event.get("kind") == "resumed" for event in events),
        "figures": {name: picture(name, figures[name]) for name in ordered},
        "environment": [(key, value) for key, value in _flat(report.get("environment") or {}) if value != ""],
        "command": report.get("command") or "",
    }


def _means(seeds: bool, subjects: int | None) -> str:
    """What intervals are over."""
    if seeds:
        return "over seeds"
    return f"over the {_count(subjects, 'subject')} whose tasks they are" if subjects else "over tasks"


def _on_test(target: str | None, of: str, found: Interval) -> str:
    """Whether the test figure keeps what validation promised."""
    if not target or not math.isfinite(found.mean):
        return ""
    metric, at_least, value = astuple(Target.parse(target))
    if metric != of:
        return ""
    half = found.ci95 if math.isfinite(found.ci95) else 0.0
    low, high = found.mean - half, found.mean + half
    if low >= value if at_least else high <= value:
        return f"The target, {target}, holds on the test tasks too, with the whole interval."
    if high < value if at_least else low > value:
        return f"The test figure is short of the target, {target}."
    return (
        f"The target, {target}, lies within the test figure's interval: the test tasks do not settle whether it holds."
    )


def _rows(report: dict[str, Any], test: Figures | None, baselines: dict[str, Figures]) -> list[Row]:
    metric, about = report["metric"], report.get("baselines_about") or {}
    figures = {name: read(each, metric) for name, each in baselines.items()}
    sign = -1 if report.get("higher_is_better", True) else 1
    names = sorted(figures, key=lambda n: sign * figures[n].mean if math.isfinite(figures[n].mean) else math.inf)
    paired = report.get("paired") or {}
    rows = [
        Row(
            name.replace("_", " "),
            written(figures[name]),
            figures[name].num_tasks,
            difference_to(paired, name),
            about.get(name) or "",
            False,
        )
        for name in names
    ]
    if test:
        ours = read(test, metric)
        rows.insert(
            0,
            Row("learner", written(ours), ours.num_tasks, "", about.get("learner") or "This run, meta-learned.", True),
        )
    return rows


def _seeds(report: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """A line for each seed of a run of several."""
    return [
        {
            "seed": entry["seed"],
            "figure": written(read(entry.get("test"), metric)),
            "round": "–" if entry.get("best_round") is None else entry["best_round"],
            "outcome": (entry.get("outcome") or "").replace("_", " ").lower(),
            "time": "–" if entry.get("seconds") is None else duration(entry["seconds"]),
        }
        for entry in report.get("seeds") or []
    ]


def _calibration(found: dict[str, Any]) -> list[tuple[str, str]]:
    if not found:
        return []
    classes = found.get("kind") == "classes"
    rows = [("expected calibration error" if classes else "mean gap of coverage", written(_alone(found.get("error"))))]
    if found.get("nll"):
        rows.append(("negative log-likelihood, nats", written(read(found, "nll"))))
    if found.get("brier"):
        rows.append(("Brier score", written(read(found, "brier"))))
    bands = {} if classes else {point["expected"]: point["observed"] for point in found.get("points") or []}
    rows += [(f"targets within the {level:.0%} band", f"{bands[level]:.1%}") for level in (0.5, 0.95) if level in bands]
    return rows


def cost_lines(cost: dict[str, Any]) -> list[tuple[str, str]]:
    """A report's entry of costs as names and values for a person."""

    def times(found: dict[str, Any]) -> str:
        return f"{found['median']:.3g} ms, 95 % below {found['p95']:.3g} ms"

    given = [
        ("parameters of the learner", "parameters", lambda n: f"{n:,}"),
        (
            "numbers in a task's state",
            "state_numbers",
            lambda n: f"{n:,} ({scaled(cost.get('state_bytes') or 0, 'B')})",
        ),
        ("to adapt to a task", "adapt_ms", times),
        ("to predict its queries", "predict_ms", times),
        ("FLOPs of adapting", "adapt_flops", scaled),
        ("FLOPs of predicting", "predict_flops", scaled),
    ]
    return [(name, form(cost[key])) for name, key, form in given if cost.get(key) is not None]


def rejection_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """A report's entry on what is out of scope as names and values for a person."""
    if not found:
        return []
    rejected = (
        f"{written(read(found, 'rejected_outside'))} of it, and {written(read(found, 'rejected_inside'))} in scope"
    )
    return [
        ("out of scope, AUROC", f"{written(read(found, 'auroc'))} by {found['score']}"),
        ("taken for in scope, where 95 % of what is pass", written(read(found, "fpr95"))),
        (f"rejected above {found['threshold']:.4g}", rejected),
    ]


def coverage_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """A report's entry on the catalogue as names and values for a person."""
    return [(name.replace("_", " "), str(Coverage(**each))) for name, each in found.items()]


def _alone(value: float | None) -> Interval:
    """A number as JSON gave it back, null being NaN, as a figure without an interval."""
    return Interval(math.nan if value is None else float(value), math.nan, 1)


def scaled(count: float, unit: str = "") -> str:
    """A large number for a person, by powers of 1000.

    Example:
        >>> scaled(950, "B"), scaled(1_620_000), scaled(3.2e9, "B")
        ('950 B', '1.62 M', '3.2 GB')
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}{unit}"
    return f"{count:.0f} {unit}".rstrip()


def _inductive(inductive: bool | None) -> str:
    if inductive is None:
        return ""
    if inductive:
        return "Inductive: each query example is predicted on its own, from the support set alone."
    return (
        "Transductive: a prediction may depend on the other query examples of its task, so these figures do not "
        "compare with inductive ones."
    )


def _choice(best_round: int | None, tested: bool, seeds: bool) -> str:
    if seeds:
        return "One checkpoint for each seed, no ensemble: the best of its rounds on validation tasks."
    if best_round is None:
        return "No round gave a usable checkpoint." + ("" if tested else " The test tasks were left alone.")
    chosen = f"One checkpoint, no ensemble: that of round {best_round}, chosen on validation tasks."
    return f"{chosen} The test tasks were used once, at the end." if tested else chosen


def _protocol(protocol: dict[str, Any]) -> list[tuple[str, str]]:
    rest = {key: key.replace("_", " ") for key in protocol if key not in PROTOCOL and key != "inductive"}
    named = {key: name for key, name in (PROTOCOL | rest).items() if protocol.get(key) is not None}
    return [(name, _entry(key, protocol[key])) for key, name in named.items()]


def _settings(rounds: list[dict[str, Any]]) -> tuple[list[str], str]:
    """Names of the settings that differ between rounds, and a phrase with those that do not."""
    each = [entry.get("settings") or {} for entry in rounds]
    names = list(dict.fromkeys(name for settings in each for name in settings))
    vary = [name for name in names if any(settings.get(name) != each[0].get(name) for settings in each)]
    return vary, ", ".join(f"{name} {_short(each[0][name])}" for name in names if name not in vary)


def _round(entry: dict[str, Any], metric: str, columns: list[str], best: bool) -> dict[str, Any]:
    decision, found, loss = entry.get("decision") or {}, read(entry.get("val"), metric), entry.get("train_loss")
    return {
        "number": entry.get("number", ""),
        "step": entry.get("step", ""),
        "loss": "–" if loss is None else f"{loss:.4g}",
        "val": written(found) if math.isfinite(found.mean) else "diverged" if entry.get("diverged") else "none",
        "settings": [_short((entry.get("settings") or {}).get(name)) for name in columns],
        "time": "–" if entry.get("seconds") is None else duration(entry["seconds"]),
        "action": decision.get("action") or "",
        "reason": _capital(decision.get("reason") or entry.get("diverged") or ""),
        "best": best,
    }


def _audit(audit: Mapping[str, Any]) -> dict[str, str]:
    tolerance = audit.get("tolerance")
    passes = "" if tolerance is None else f" Passes up to {tolerance:.3g}: {audit['because']}."
    tones = {"PASSED": "good", "FAILED": "bad", "NOT_APPLICABLE": "continue"}
    return {
        "name": audit["name"],
        "asks": audit["asks"],
        "result": audit["result"].replace("_", " ").lower(),
        "tone": tones[audit["result"]],
        "found": audit["found"] + passes,
    }


def _timing(timing: dict[str, Any]) -> list[tuple[str, str]]:
    given = [
        ("time in all", timing.get("seconds"), duration),
        ("of it pretraining", timing.get("pretrain_seconds"), duration),
    ]
    return [(name, form(value)) for name, value, form in given if value is not None]


def duration(seconds: float) -> str:
    """Seconds for a person.

    Example:
        >>> duration(4.21), duration(134), duration(7262)
        ('4.2 s', '2 min 14 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def picture(name: str, figure: Figure) -> Picture:
    """A figure as a data URI: SVG, or PNG where it holds images, which browsers would blur in an SVG."""
    from matplotlib import rc_context

    raster = any(axes.images for axes in figure.axes)
    kind, mime = ("png", "image/png") if raster else ("svg", "image/svg+xml")
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "kshot"}):  # equal figures, equal bytes
        figure.savefig(buffer, format=kind, dpi=200, metadata={"Software": None} if raster else {"Date": None})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    alt = "; ".join(title for title in titles if title) or name.replace("_", " ")
    caption = CAPTIONS.get(name) or _capital(name.replace("_", " ")) + "."
    return Picture(name, f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}", alt, caption)


def _flat(entries: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in entries.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        else:
            rows.append((f"{prefix}{key}".replace("_", " "), _short(value)))
    return rows


def _entry(key: str, value: Any) -> str:
    """A value by its name: sizes that are drawn for each task are a range."""
    if key in ("ways", "train_ways", "shots", "queries", "train_queries") and isinstance(value, list):
        return " to ".join(map(str, value))
    return _short(value)


def _short(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        entries = {key: _entry(key, entry) for key, entry in value.items()}
        return ", ".join(
            f"{key} ({text})" if isinstance(value[key], dict) else f"{key} {text}" for key, text in entries.items()
        )
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
