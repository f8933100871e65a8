"""The folder that the cases start from: tiny data, trained runs, and a state of each."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import polars as pl
import yaml
from inputs import tiny
from inputs.calls import DATA, Case, call

from kshot.evaluation.report.report import write_report

RUNS = {
    "sine": ("sinusoids", "mlp", "maml"),
    "pictures": ("images", "conv4", "protonet"),
    "rows": ("table of groups", "mlp", "maml"),
    "groups": ("table of groups, classes", "none", "partial_pooling"),
    "classes": ("table of classes", "mlp", "protonet"),
    "words": ("text", "mlp", "protonet"),
    "letters": ("corpus", "language_model", "dynamic_evaluation"),
    "series": ("series", "mlp", "maml"),
    "ratings": ("ratings", "factorisation", "alpaca"),
    "clicks": ("clicks with factors", "none", "item_similarity"),
}
"""Trained runs by name: their source, model and learner."""

SUPPORT = {
    "sine": "support-sine.csv",
    "pictures": "support-pictures",
    "rows": "support-rows.csv",
    "groups": "support-rows.csv",
    "classes": "support-classes.csv",
    "words": "support-words.csv",
    "letters": "letters/3.txt",
    "series": "support-series.csv",
    "ratings": "support-ratings.csv",
    "clicks": "support-ratings.csv",
}
"""What each run adapts to."""


def prepare(folder: Path) -> Path:
    """Write the data, train the runs, and adapt each; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_data(folder)
    tiny.write_images(folder / "support-pictures", classes=2, each=2)
    rows = pl.read_csv(folder / "rows.csv")
    rows.filter(pl.col("g") == "s1").head(6).write_csv(folder / "support-rows.csv")
    rows.filter(pl.col("g").is_in(["s1", "s2"])).head(6).write_csv(folder / "support-classes.csv")
    (folder / "support-sine.csv").write_text("x,y\n0,0\n1,0.8\n2,0.9\n")
    (folder / "support-words.csv").write_text("text,label\nplease play,a\nstop it,b\npay next,a\n")
    pl.read_csv(folder / "series.csv").select("day", "s1").write_csv(folder / "support-series.csv")
    ratings = pl.read_csv(folder / "ratings.csv")
    ratings.filter(pl.col("user") == "u1").head(6).write_csv(folder / "support-ratings.csv")
    for name, (source, model, learner) in RUNS.items():
        content = tiny.run_file(tiny.SOURCES[source], tiny.MODELS[model], tiny.learner(learner))
        with mock.patch("kshot.app.run.write_report", _without_charts):  # they take most of the time
            words = ["run", "run.yaml", "--out", str(folder / "runs" / name)]
            done(Case(words, {"run.yaml": text_of(content)}), folder)
        state = str(folder / f"{name}.state")
        done(Case(["adapt", f"{DATA}/runs/{name}", "--support", f"{DATA}/{SUPPORT[name]}", "--out", state], {}), folder)
    out = ["--out", str(folder / "episodes.safetensors"), "--tasks", "3"]
    done(Case(["data", "freeze", "glyphs", *out, "--set", "source.queries=1", "--set", "source.ways=2"], {}), folder)
    return folder


def _without_charts(out: Path, report: tiny.Options, events: list[tiny.Options], figures: object) -> None:
    write_report(out, report, events, {})


def done(case: Case, folder: Path) -> None:
    """Call a case that has to succeed."""
    outcome = call(case, folder, seconds=120)  # the first imports much
    assert not outcome.leak, (case.words, outcome)
    assert outcome.code in (0, 1, 3), (case.words, outcome)


def text_of(content: tiny.Options) -> bytes:
    """A run file as text, with the paths of tiny data in the prepared folder."""
    return yaml.safe_dump(placed(content), sort_keys=False).encode()


def placed(value: object) -> object:
    if isinstance(value, dict):
        return {key: f"{DATA}/{inner}" if key in ("path", "encoder") and isinstance(inner, str) else placed(inner)
                for key, inner in value.items()}  # fmt: skip
    return [placed(inner) for inner in value] if isinstance(value, list) else value


def remade(folder: Path) -> Path:
    """The prepared folder, made if it is not there."""
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        prepare(folder)
        (folder / "ready").touch()
    return folder
