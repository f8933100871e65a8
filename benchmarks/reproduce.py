"""Recipes beside the published figures that they are to reach: trains them, scores them, and writes RESULTS.md.

    python benchmarks/reproduce.py --out runs/reproduce                       # everything, two seeds each: hours
    python benchmarks/reproduce.py omniglot-protonet --seeds 0 1 2 --resume   # one recipe; goes on where it was stopped
    python benchmarks/reproduce.py --write                                    # no training: the table of what is there

Each recipe is trained once a seed by `kshot run`, in a folder of its own; validation tasks choose its checkpoint. That
one checkpoint is then scored on the test tasks of each cell, and the scores are kept in the folder. Recipes that
pretrain alike share the pretraining of a seed, and its minutes count for each of them.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import kshot
from kshot import sources
from kshot.app.build import build_source, device_of, has_head
from kshot.app.folder import RunFolder, read_spec
from kshot.app.run import environment, run
from kshot.app.spec import Spec, load_spec
from kshot.data import ArrayDataset
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.intervals import Interval, over_seeds
from kshot.evaluation.report.report import to_json
from kshot.learners.heads.head_learner import HeadLearner
from kshot.tasks import ClassTasks
from kshot.tasks.source import TaskSource, hash_into
from kshot.training.checkpoint import META, Checkpoints

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- written by benchmarks/reproduce.py: begin -->", "<!-- end -->"
SCORES = "scores.json"
UNTESTED = ("evaluate.num_test_tasks=2", "baselines.names=[]")
"""What a run leaves out, since its checkpoint is scored here."""
TASKS = 1000


@dataclass(frozen=True)
class Cell:
    """Test tasks of one kind: `make` gives them from a recipe's own run file."""

    name: str
    make: Callable[[Spec], TaskSource]
    tasks: int = TASKS


def _of_source(ways: int, shots: int) -> Cell:
    """The recipe's own source with other sizes; the tasks are the same for all seeds."""

    def make(spec: Spec) -> TaskSource:
        queries = 15 if ways == 5 else 5
        sizes = {"ways": ways, "shots": shots, "queries": queries, "train_ways": None, "train_queries": None}
        return build_source(spec.model_copy(update={"source": spec.source.model_copy(update=sizes)}))

    return Cell(f"{ways}-way {shots}-shot", make)


OMNIGLOT = (_of_source(5, 1), _of_source(5, 5), _of_source(20, 1), _of_source(20, 5))
RUNS = (Cell("official runs, 20-way 1-shot", lambda spec: sources.omniglot_runs(), tasks=20),)


class Published(NamedTuple):
    """What others reached.

    Attributes:
        what: the method and where it is published.
        accuracy: in each of the cells, in percent.
    """

    what: str
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """Recipes whose figures stand side by side."""

    title: str
    cells: tuple[Cell, ...]
    recipes: tuple[str, ...]
    published: tuple[Published, ...] = field(default=())


TABLES = (
    Table(
        "Omniglot, Vinyals split",
        OMNIGLOT,
        ("omniglot-protonet", "omniglot-proto-maml", "omniglot-best", "omniglot-quick"),
        (
            Published("ProtoNet (Snell et al., arXiv:1703.05175, table 1)", (98.8, 99.7, 96.0, 98.9)),
            Published("MAML (Finn et al., arXiv:1703.03400, table 1; transductive)", (98.7, 99.9, 95.8, 98.9)),
            Published(
                "MAML++ (Antoniou et al., arXiv:1810.09502, table 1; transductive, an ensemble)",
                (99.47, 99.85, 97.65, 99.33),
            ),
        ),
    ),
    Table(
        "Lake's official one-shot runs, within an alphabet",
        RUNS,
        ("omniglot-background",),
        (
            Published("people (Lake et al., Science 350, 2015)", (95.5,)),
            Published("Bayesian Program Learning (the same)", (96.7,)),
        ),
    ),
)


def folder_of(out: Path, recipe: str, seed: int) -> Path:
    return out / f"{recipe}-seed{seed}"


def train(recipe: str, seed: int, out: Path, *, resume: bool) -> Path:
    """Train a recipe with a seed, unless that is done, and return its run folder.

    Raises:
        ValueError: the folder holds an unfinished run, and `resume` is false; or a run of another recipe.
    """
    spec = load_spec(recipe, [f"seed={seed}", *UNTESTED])
    path = folder_of(out, recipe, seed)
    folder = RunFolder(path)
    if folder.report.exists():
        folder.check(spec)
        return path
    begun = folder.spec.exists()
    if begun and not resume:
        raise ValueError(f"{path} holds an unfinished run: go on with it by --resume, or choose another --out")
    if not begun and share_pretraining(spec, path, out):
        begun = True
    run(spec, path, resume=begun)
    return path


def share_pretraining(spec: Spec, path: Path, out: Path) -> bool:
    """Start the run `path` with the pretraining of another run in `out` that pretrains alike and has finished that."""
    if spec.pretrain is None:
        return False
    for other in sorted(out.iterdir()) if out.is_dir() else []:
        donor = RunFolder(other)
        last = donor.pretrain / f"step-{spec.pretrain.steps:07d}"
        if other != path and last.exists() and pretraining_of(read_spec(other)) == pretraining_of(spec):
            folder = RunFolder(path)
            folder.open_new(spec)
            shutil.copytree(last, folder.pretrain / last.name)
            return True
    return False


def pretraining_of(spec: Spec) -> dict[str, Any]:
    """All in a run file that pretraining depends on: for classes, not how many of them a task has."""
    source = spec.source.model_dump()
    sizes = {"ways", "shots", "queries", "train_ways", "train_queries", "imbalance", "label_noise"}
    return {
        "source": {key: value for key, value in source.items() if key not in sizes},
        "model": {key: value for key, value in spec.model.model_dump().items() if key != "views"},  # for evaluation
        "head": has_head(spec),
        "pretrain": spec.pretrain,
        "seeds": (spec.seed, spec.task_seed),
    }


def score(path: Path, cells: Iterable[Cell]) -> dict[str, Any]:
    """Score a run's one checkpoint on the test tasks of the cells that are not scored yet; all scores by cell."""
    file = path / SCORES
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    opened = kshot.load(path)
    for cell in cells:
        if cell.name in found and found[cell.name]["weights_sha256"] == opened.weights:
            continue
        learner, source = opened.learner.to(device_of(opened.spec)), cell.make(opened.spec)
        made = {"weights_sha256": opened.weights, "commit": environment()["commit"]}
        if (
            isinstance(source, ClassTasks)
            and isinstance(learner, HeadLearner)
            and learner.function.batchnorm == "running"
        ):
            made["episodes_sha256"] = hash_of(source, cell.tasks)
            learner, source = on_features(learner, source)
        result = evaluate(learner, source, tasks=cell.tasks)
        found[cell.name] = to_json(result.summary() | made)
        beside = file.with_suffix(".part")
        beside.write_text(json.dumps(found, indent=1))
        beside.replace(file)
    return found


def on_features(learner: HeadLearner, source: ClassTasks) -> tuple[HeadLearner, ClassTasks]:
    """The same learner on the same test tasks, each example embedded once rather than in all tasks that draw it.

    It is exact, but for rounding, where the embedding looks at each example by itself: BatchNorm on running statistics.
    """
    rows = np.unique(np.concatenate([*source.classes("test").values()]))
    device = next(learner.parameters()).device
    learner.eval()
    with torch.no_grad():
        parts = [
            learner.embed_query({}, source.examples.take(rows[start : start + 256]).to(device)).cpu()
            for start in range(0, len(rows), 256)
        ]
    features = np.zeros((len(source.examples), parts[0].shape[1]), np.float32)
    features[rows] = torch.cat(parts).numpy()
    embedded = copy.copy(source)
    embedded.examples = ArrayDataset(features)
    return HeadLearner(nn.Identity(), learner.head, learner.objective, batchnorm="running"), embedded


def hash_of(source: TaskSource, tasks: int) -> str:
    """The hash of the first test tasks, as `evaluate` gives it."""
    digest = hashlib.sha256()
    for index in range(tasks):
        hash_into(digest, source.task("test", index))
    return digest.hexdigest()


def minutes_of(path: Path) -> tuple[float, float]:
    """How long a run trained in all: minutes by the clock, validation included, and minutes of processor time."""
    folder = RunFolder(path)
    clock = json.loads(folder.report.read_text())["timing"]["seconds"]
    processor = 0.0
    for part in (folder.pretrain, folder.train):
        latest = Checkpoints(part).latest() if part.exists() else None
        processor += json.loads((latest / META).read_text())["processor_seconds"] if latest else 0.0
    return clock / 60, processor / 60


def rows_of(table: Table, out: Path) -> list[str]:
    """The lines of a table in Markdown: what is published, and below it what the runs in `out` reached."""
    names = [cell.name for cell in table.cells]
    lines = [f"| | {' | '.join(names)} | training | commit |", f"|{' --- |' * (len(names) + 3)}"]
    lines += [
        f"| {published.what} | {' | '.join(f'{value:.4g}' for value in published.accuracy)} | | |"
        for published in table.published
    ]
    for recipe in table.recipes:
        done = [path for path in sorted(out.glob(f"{recipe}-seed*")) if (path / SCORES).exists()]
        scores = [json.loads((path / SCORES).read_text()) for path in done]
        if not done:
            continue
        figures = [figure_of([own[name]["metrics"]["accuracy"] for own in scores if name in own]) for name in names]
        times = [minutes_of(path) for path in done]
        clock, processor = (sum(part) / len(done) for part in zip(*times))
        commits = sorted({str(own[name]["commit"]) for own in scores for name in names if name in own})
        seeds = "1 seed" if len(done) == 1 else f"{len(done)} seeds"
        lines.append(
            f"| `{recipe}`, {seeds} | {' | '.join(figures)} | {clock:.0f} min, {processor:.0f} of processor time | "
            f"{', '.join(commits)} |"
        )
    return lines


def figure_of(metrics: list[dict[str, Any]]) -> str:
    """A cell of the table: the mean in percent, the interval over tasks, and each seed's own mean."""
    if not metrics:
        return "–"
    pooled = over_seeds([Interval(**metric) for metric in metrics])
    each = ", ".join(f"{100 * metric['mean']:.2f}" for metric in metrics)
    return f"**{100 * pooled.mean:.2f}** ± {100 * pooled.ci95_tasks:.2f}" + (f" ({each})" if len(metrics) > 1 else "")


def section(out: Path) -> str:
    """What goes into RESULTS.md."""
    lines = [
        "## Beside published figures",
        "",
        f"`python benchmarks/reproduce.py`, torch {torch.__version__}, {torch.get_num_threads()} thread(s). "
        f"Accuracy in % on {TASKS:,} test tasks, 15 queries a class for 5 ways and 5 for 20 ways "
        "(the official runs: 20 tasks of 1 query a class): mean over seeds ± 95 % interval over tasks (each seed's own "
        "mean). One checkpoint, chosen on validation tasks; inductive. Training is a mean over seeds, pretraining "
        "included.",
    ]
    for table in TABLES:
        lines += ["", f"**{table.title}**", "", *rows_of(table, out)]
    return "\n".join(lines)


def write(text: str, path: Path = RESULTS) -> None:
    """Put a section between its marks in a Markdown file, at the end if there are none yet."""
    before = path.read_text()
    if BEGIN in before:
        head, rest = before.split(BEGIN, 1)
        tail = rest.split(END, 1)[1]
    else:
        head, tail = before.rstrip("\n") + "\n\n", "\n"
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main() -> None:
    known = [recipe for table in TABLES for recipe in table.recipes]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(known)}; all by default")
    parser.add_argument(
        "--cells", nargs="+", metavar="CELL", help="such as '20-way 1-shot'; all of a recipe by default"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--resume", action="store_true", help="go on with unfinished runs")
    parser.add_argument("--write", action="store_true", help="train and score nothing, only write RESULTS.md")
    options = parser.parse_args()
    names = [cell.name for table in TABLES for cell in table.cells]
    for what, given, right in (("recipe", options.recipes, known), ("cell", options.cells or [], names)):
        if unknown := set(given) - set(right):
            parser.error(f"unknown {what}: {', '.join(sorted(unknown))}; known are {', '.join(right)}")
    for table in () if options.write else TABLES:
        cells = [cell for cell in table.cells if cell.name in (options.cells or [cell.name])]
        for recipe in table.recipes:
            for seed in options.seeds if recipe in (options.recipes or known) else ():
                score(train(recipe, seed, options.out, resume=options.resume), cells)
    write(section(options.out))


if __name__ == "__main__":
    main()
