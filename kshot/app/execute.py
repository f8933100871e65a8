"""A run file is executed: once, once for each seed, or once for each fold; from Python, and from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from kshot.app.folder import run_folder
from kshot.app.folds import run_folds
from kshot.app.in_memory import as_text
from kshot.app.mirror import take_from_mirror
from kshot.app.processes import is_silent
from kshot.app.run import run as run_once
from kshot.app.screen import Screen
from kshot.app.seeds import run_seeds
from kshot.app.spec import Spec, load_spec, parse_spec
from kshot.app.terminal import print_summary
from kshot.app.trained import TrainedRun, load
from kshot.evaluation.report.conclusion import conclude
from kshot.evaluation.report.sections import result_table
from kshot.evaluation.report.verdict import verdict_of


class Report(dict[str, Any]):
    """The report of a run, as in report.json; as text, or in a notebook, its summary.

    Attributes:
        folder: the run folder, with report.html.

    Example:
        >>> report = kshot.run("sinusoid", overrides=["budget.rounds=1"])  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
        >>> report["test"]["mse"]["mean"]  # doctest: +SKIP
        0.31
    """

    def __init__(self, values: Mapping[str, Any], folder: Path) -> None:
        super().__init__(values)
        self.folder = folder

    @property
    def trained(self) -> TrainedRun:
        """The trained learner, which adapts to new tasks; see `kshot.load`."""
        return load(self.folder)

    def __str__(self) -> str:
        text = StringIO()
        print_summary(self, self.folder, Screen(file=text, width=120, force_jupyter=False))
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        conclusion = conclude(self)
        lines = [f"<p><b>{escape(conclusion.sentence)}</b></p>"]
        if self.get("test") is not None:
            table = result_table(self)
            head = "".join(f"<th style='text-align:left'>{escape(column.title)}</th>" for column in table.columns[:4])
            rows = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row.cells[:4]) for row in table.rows]
            lines.append(f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
            lines += [f"<p>{escape(verdict_of(self))}</p>"] if self.get("baselines") else []
        return "".join(lines) + f"<p>report: <code>{escape(str(self.folder / 'report.html'))}</code></p>"


def execute(
    spec: Spec,
    folder: Path,
    *,
    seeds: Sequence[int] = (),
    resume: bool = False,
    init_from: Path | None = None,
    profile: bool = False,
    mirror: str | None = None,
    console: Console | None = None,
) -> Report:
    """Execute a run file in a folder.

    Args:
        seeds: two or more, for a run of each and a common report; by default the one of the run file.
        resume: whether to continue an interrupted run in the folder.
        init_from: folder of another run, whose weights the learner starts from.
        profile: whether to measure where the time of a round goes, into the folder `profile`.
        mirror: URL of an object store, such as s3://bucket/run, to which the folder is copied while the run goes on.
            With `resume`, an empty folder is filled from there, and a new run starts where nothing is there.

    Raises:
        ValueError: seeds together with folds, or `init_from`, `profile` or `mirror` with either; and as `run`.
    """
    if seeds and spec.evaluate.folds:
        raise ValueError("seeds and evaluate.folds are not combined: run the file once for each seed")
    for name, given in {"init_from": init_from, "profile": profile or None, "mirror": mirror}.items():
        if given is not None and (seeds or spec.evaluate.folds):
            raise ValueError(f"{name} is for one run: leave out seeds and evaluate.folds")
    if mirror is not None and not is_silent():
        take_from_mirror(mirror, folder, resume=resume)
    if spec.evaluate.folds:
        values = run_folds(spec, folder, resume=resume, console=console)
    elif seeds:
        values = run_seeds(spec, folder, list(seeds), resume=resume, console=console)
    else:
        values = run_once(
            spec, folder, resume=resume, init_from=init_from, console=console, profile=profile, mirror=mirror
        )
    return Report(values, folder)


def run(
    run_file: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (),
    resume: bool = False,
    init_from: str | Path | None = None,
    profile: bool = False,
    mirror: str | None = None,
    console: Console | None = None,
) -> Report:
    """Execute a run file, as `kshot run` does: pretrain, meta-train in rounds, test once beside baselines.

    Args:
        run_file: a recipe, a file, or its values, in which `source` may be a `TaskSource`, and its `path` a DataFrame
            or another table in memory.
        out: folder of the run; by default a new one in runs/.
        overrides: `PATH=VALUE`, each sets a key of the run file.
        seeds, resume, init_from, profile, mirror: as in `execute`.
        console: where progress is shown; by default the terminal, or the output of a notebook.

    Returns:
        The report: a dict, which shows itself in a notebook. `report.trained` adapts to new tasks.

    Raises:
        ValueError: the run file, or the data, cannot be used; `out` is not empty.

    Example:
        >>> import pandas  # doctest: +SKIP
        >>> shops = pandas.read_csv("shops.csv")  # doctest: +SKIP
        >>> source = {"kind": "table", "path": shops, "group": "shop", "target": "sales"}  # doctest: +SKIP
        >>> learner = {"kind": "partial_pooling"}  # doctest: +SKIP
        >>> report = kshot.run({"source": source, "learner": learner, "target": "mse <= 2"})  # doctest: +SKIP
    """
    if isinstance(run_file, Mapping):
        spec = parse_spec(as_text({"name": "run", **run_file}), "the run file", list(overrides))
    else:
        spec = load_spec(str(run_file), list(overrides))
    if resume and out is None:
        raise ValueError("resume needs the folder of the run: out")
    with run_folder(None if out is None else Path(out), spec.name) as folder:
        return execute(
            spec,
            folder,
            seeds=seeds,
            resume=resume,
            init_from=None if init_from is None else Path(init_from),
            profile=profile,
            mirror=mirror,
            console=console,
        )
