"""Train and score the recipes that have published counterparts, and write the comparison into RESULTS.md.

    python benchmarks/reproduce.py --out runs/reproduce                       # all recipes, two seeds each: hours
    python benchmarks/reproduce.py omniglot-protonet --seeds 0 1 2 --resume   # one recipe; continues unfinished runs
    python benchmarks/reproduce.py --write                                    # no training: write the existing scores

Each recipe is trained once per seed by `kshot run`, in a separate folder; validation tasks choose its checkpoint. This
checkpoint is scored on the test tasks of each cell, and the scores are stored in the folder. Recipes with the same
pretraining share it for each seed, and its time counts for each of them.
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
from kshot.app.environment import environment
from kshot.app.folder import RunFolder, read_spec
from kshot.app.run import run
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
"""Settings that skip the final evaluation of a run, since its checkpoint is scored here."""
TASKS = 1000


@dataclass(frozen=True)
class Cell:
    """A column of the table: `make` builds the source of its test tasks from a recipe's run file."""

    name: str
    make: Callable[[Spec], TaskSource]
    num_tasks: int = TASKS


def _of_source(ways: int, shots: int) -> Cell:
    """The recipe's source with other numbers of ways and shots; the tasks are the same for all seeds."""

    def make(spec: Spec) -> TaskSource:
        queries = 15 if ways == 5 else 5
        sizes = {"ways": ways, "shots": shots, "queries": queries, "train_ways": None, "train_queries": None}
        return build_source(spec.model_copy(update={"source": spec.source.model_copy(update=sizes)}))

    return Cell(f"{ways}-way {shots}-shot", make)


OMNIGLOT = (_of_source(5, 1), _of_source(5, 5), _of_source(20, 1), _of_source(20, 5))
RUNS = (Cell("official runs, 20-way 1-shot", lambda spec: sources.omniglot_runs(), num_tasks=20),)


class Published(NamedTuple):
    """A published result.

    Attributes:
        method: name and reference.
        accuracy: accuracy in each cell, in percent.
    """

    method: str
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """Recipes and published results in the same cells."""

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
            Published("humans (Lake et al., Science 350, 2015)", (95.5,)),
            Published("Bayesian Program Learning (the same)", (96.7,)),
        ),
    ),
)


def folder_of(out: Path, recipe: str, seed: int) -> Path:
    return out / f"{recipe}-seed{seed}"


def train(recipe: str, seed: int, out: Path, *, resume: bool) -> Path:
    """Train a recipe with a seed unless that run is finished, and return its run folder.

    Raises:
        ValueError: if the folder contains an unfinished run and `resume` is false, or a run of another recipe.
    """
    spec = load_spec(recipe, [f"seed={seed}", *UNTESTED])
    path = folder_of(out, recipe, seed)
    folder = RunFolder(path)
    if folder.report.exists():
        folder.check(spec)
        return path
    begun = folder.spec.exists()
    if begun and not resume:
        raise ValueError(f"{path} contains an unfinished run: continue it by --resume, or choose another --out")
    if not begun and share_pretraining(spec, path, out):
        begun = True
    run(spec, path, resume=begun)
    return path


def share_pretraining(spec: Spec, path: Path, out: Path) -> bool:
    """Copy finished pretraining with the same settings from another run in `out` to the run `path`; return success."""
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
    """The settings of a run file that pretraining depends on; the number of ways is not among them."""
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
    """Score a run's checkpoint on the cells that have no scores yet; return all scores by cell."""
    file = path / SCORES
    scores: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    opened = kshot.load(path)
    for cell in cells:
        if cell.name in scores and scores[cell.name]["weights_sha256"] == opened.weights:
            continue
        learner, source = opened.learner.to(device_of(opened.spec)), cell.make(opened.spec)
        details = {"weights_sha256": opened.weights, "commit": environment()["commit"]}
        if (
            isinstance(source, ClassTasks)
            and isinstance(learner, HeadLearner)
            and learner.function.batchnorm == "running"
        ):
            details["episodes_sha256"] = hash_of(source, cell.num_tasks)
            learner, source = on_features(learner, source)
        result = evaluate(learner, source, num_tasks=cell.num_tasks)
        scores[cell.name] = to_json(result.summary() | details)
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps(scores, indent=1))
        temporary.replace(file)
    return scores


def on_features(learner: HeadLearner, source: ClassTasks) -> tuple[HeadLearner, ClassTasks]:
    """The same learner on the same test tasks, with each example embedded once rather than in every task that has it.

    Exact up to rounding if the embedding treats examples independently, as BatchNorm with running statistics does.
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


def hash_of(source: TaskSource, num_tasks: int) -> str:
    """The hash of the first test tasks, as `evaluate` computes it."""
    digest = hashlib.sha256()
    for index in range(num_tasks):
        hash_into(digest, source.raw.task("test", index))
    return digest.hexdigest()


def minutes_of(path: Path) -> tuple[float, float]:
    """Training time of a run in minutes: wall-clock time with validation, and processor time."""
    folder = RunFolder(path)
    clock = json.loads(folder.report.read_text())["timing"]["seconds"]
    processor = 0.0
    for part in (folder.pretrain, folder.train):
        latest = Checkpoints(part).latest() if part.exists() else None
        processor += json.loads((latest / META).read_text())["processor_seconds"] if latest else 0.0
    return clock / 60, processor / 60


def rows_of(table: Table, out: Path) -> list[str]:
    """The lines of a Markdown table: the published results, then those of the runs in `out`."""
    names = [cell.name for cell in table.cells]
    lines = [f"| | {' | '.join(names)} | training | commit |", f"|{' --- |' * (len(names) + 3)}"]
    lines += [
        f"| {published.method} | {' | '.join(f'{value:.4g}' for value in published.accuracy)} | | |"
        for published in table.published
    ]
    for recipe in table.recipes:
        done = [path for path in sorted(out.glob(f"{recipe}-seed*")) if (path / SCORES).exists()]
        scores = [json.loads((path / SCORES).read_text()) for path in done]
        if not done:
            continue
        figures = [
            figure_of([run_scores[name]["metrics"]["accuracy"] for run_scores in scores if name in run_scores])
            for name in names
        ]
        times = [minutes_of(path) for path in done]
        clock, processor = (sum(part) / len(done) for part in zip(*times))
        commits = sorted(
            {str(run_scores[name]["commit"]) for run_scores in scores for name in names if name in run_scores}
        )
        seeds = "1 seed" if len(done) == 1 else f"{len(done)} seeds"
        lines.append(
            f"| `{recipe}`, {seeds} | {' | '.join(figures)} | {clock:.0f} min, {processor:.0f} min processor time | "
            f"{', '.join(commits)} |"
        )
    return lines


def figure_of(metrics: list[dict[str, Any]]) -> str:
    """A cell of the table: the mean in percent, the interval over tasks, and the mean of each seed."""
    if not metrics:
        return "–"
    pooled = over_seeds([Interval(**metric) for metric in metrics])
    each = ", ".join(f"{100 * metric['mean']:.2f}" for metric in metrics)
    return f"**{100 * pooled.mean:.2f}** ± {100 * pooled.ci95_tasks:.2f}" + (f" ({each})" if len(metrics) > 1 else "")


def section(out: Path) -> str:
    """The section for RESULTS.md."""
    lines = [
        "## Comparison with published results",
        "",
        f"`python benchmarks/reproduce.py`, torch {torch.__version__}, {torch.get_num_threads()} thread(s). "
        f"Accuracy in % on {TASKS:,} test tasks, with 15 queries per class for 5 ways and 5 for 20 ways "
        "(official runs: 20 tasks with 1 query per class): mean over seeds ± 95 % interval over tasks (mean of each "
        "seed). One checkpoint, chosen on validation tasks; inductive. Training time is the mean over seeds and "
        "includes pretraining.",
    ]
    for table in TABLES:
        lines += ["", f"**{table.title}**", "", *rows_of(table, out)]
    return "\n".join(lines)


def write(text: str, path: Path = RESULTS) -> None:
    """Replace the section between the marks of a Markdown file, or append it if there are no marks."""
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
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"one or more of {', '.join(known)}; default: all")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="such as '20-way 1-shot'; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--resume", action="store_true", help="continue unfinished runs")
    parser.add_argument("--write", action="store_true", help="only write RESULTS.md, without training or scoring")
    options = parser.parse_args()
    names = [cell.name for table in TABLES for cell in table.cells]
    for kind, chosen, valid in (("recipe", options.recipes, known), ("cell", options.cells or [], names)):
        if unknown := set(chosen) - set(valid):
            parser.error(f"unknown {kind}: {', '.join(sorted(unknown))}; expected one of {', '.join(valid)}")
    for table in () if options.write else TABLES:
        cells = [cell for cell in table.cells if cell.name in (options.cells or [cell.name])]
        for recipe in table.recipes:
            for seed in options.seeds if recipe in (options.recipes or known) else ():
                score(train(recipe, seed, options.out, resume=options.resume), cells)
    write(section(options.out))


if __name__ == "__main__":
    main()
