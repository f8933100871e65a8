"""What goes with what: which tasks a source gives, which tasks and inputs a learner and a model take.

These tables are checked before training (`refuse_by_table`), and docs/run-files.md shows them (`markdown`). Parts of a
user's own are not in them; they are tried on a few tasks, as all are (`kshot.app.suitability`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from kshot.app.build import ONE_TENSOR, SORTS, Shapes, has_head, models_of, sort_of
from kshot.app.schema import describe, learners_of, model_of, our_factory
from kshot.app.spec import MODELS, Spec
from kshot.objectives import Objective, levels_of, rates_items
from kshot.tasks.source import TaskSource

Targets = Literal["own", "shared", "labels", "masks", "levels", "clicks", "numbers", "spread", "text"]

TARGETS: dict[Targets, str] = {
    "own": "classes of each task's own",
    "shared": "classes that all tasks share",
    "labels": "any number of labels",
    "masks": "masks of images",
    "levels": "ratings of a few levels",
    "clicks": "clicks",
    "numbers": "numbers",
    "spread": "numbers with a standard deviation",
    "text": "running text",
}
"""What the tasks of an objective predict, in words."""

BY_STEPS: tuple[Targets, ...] = ("own", "shared", "labels", "masks", "levels", "clicks", "numbers", "text")
BY_HEAD: tuple[Targets, ...] = ("own", "shared", "clicks")
BY_EACH_LABEL: tuple[Targets, ...] = ("own", "shared", "labels", "clicks")
BY_PARTS: tuple[Targets, ...] = ("own", "shared", "labels", "masks", "clicks")
OF_GROUPS: tuple[Targets, ...] = ("shared", "levels", "clicks", "numbers", "spread")

LEARNERS: dict[str, tuple[Targets, ...]] = {
    **dict.fromkeys(("alfa", "anil", "boil", "fomaml", "maml", "maml_pp", "melu", "meta_curvature"), BY_STEPS),
    **dict.fromkeys(("meta_kfo", "meta_sgd", "reptile"), BY_STEPS),
    "imaml": ("own", "shared", "labels", "levels", "clicks", "numbers"),
    "dynamic_evaluation": ("text",),
    "r2d2": ("own", "shared", "labels", "masks", "levels", "clicks", "numbers"),
    "unicorn_maml": ("own", "shared", "levels", "clicks", "numbers"),
    **dict.fromkeys(("nearest_centroid", "pmf"), BY_EACH_LABEL),
    **dict.fromkeys(("logistic_regression", "metaoptnet", "protonet"), BY_PARTS),
    **dict.fromkeys(("baseline_pp", "bd_cspn", "caml", "cnaps", "deep_bdc", "feat", "frn", "laplacian_shot"), BY_HEAD),
    **dict.fromkeys(("matching_net", "plda", "probe", "proto_maml", "pt_map", "relation_net", "simpleshot"), BY_HEAD),
    **dict.fromkeys(("tim", "transductive_fine_tune"), BY_HEAD),
    **dict.fromkeys(("attentive_np", "cnp", "tanp", "tnp_d", "partial_pooling", "boosted_residual"), OF_GROUPS),
    "alpaca": ("levels", "clicks", "numbers", "spread"),
    "prior_fitted": ("own", "shared", "spread"),
    "forecast_ensemble": ("numbers",),
    "item_similarity": ("clicks",),
    **dict.fromkeys(("named_means", "tip_adapter"), ("own",)),
}
"""What the tasks of each learner may predict; `choose` and `mixture` are as their parts.

Those of `BY_HEAD`, `BY_EACH_LABEL` and `BY_PARTS` give a class without support examples no probability: they take
shared classes where each task has examples of all of its classes."""

READ_NAMES = ("named_means", "tip_adapter")

NO_MODEL: dict[str, tuple[str, ...]] = {
    "item_similarity": (SORTS["counts"],),
    "prior_fitted": (ONE_TENSOR, SORTS["widths"]),
    "nearest_centroid": (ONE_TENSOR, SORTS["widths"]),
}
"""The inputs of learners that have no model; of others one tensor of numbers."""

SOURCES: dict[str, tuple[tuple[Targets, ...], tuple[str, ...]]] = {
    **dict.fromkeys(("glyphs", "omniglot", "omniglot_runs"), (("own",), (ONE_TENSOR,))),
    **dict.fromkeys(("images", "text", "tfrecord"), (("own",), (ONE_TENSOR, SORTS["encoder"]))),
    "masks": (("masks",), (ONE_TENSOR,)),
    "multilabel_images": (("labels",), (ONE_TENSOR, SORTS["encoder"])),
    "table": (("own", "shared", "numbers"), (ONE_TENSOR,)),
    "tabular_priors": (("own", "spread"), (ONE_TENSOR, SORTS["widths"])),
    "series": (("numbers",), (ONE_TENSOR,)),
    "sinusoids": (("numbers", "spread"), (ONE_TENSOR,)),
    **dict.fromkeys(("gaussian_processes", "pixels"), (("spread",), (ONE_TENSOR,))),
    "corpus": (("text",), (SORTS["symbols"],)),
    **dict.fromkeys(("ratings", "movielens"), (("levels", "clicks", "numbers"), (SORTS["counts"],))),
}
"""What the tasks of each source predict, and from which inputs; `mixture`, `episodes` and `from_hf` are as their
parts."""

EXAMPLES: dict[Targets, str] = {
    "own": "protonet, r2d2 or maml",
    "shared": "maml, reptile, r2d2 or cnp",
    "labels": "protonet, r2d2 or maml",
    "masks": "protonet, r2d2 or maml with model segmenter",
    "levels": "alpaca, maml or cnp",
    "clicks": "item_similarity, alpaca or maml",
    "numbers": "maml, reptile or cnp",
    "spread": "cnp, tnp_d or partial_pooling",
    "text": "dynamic_evaluation, maml or meta_sgd",
}
"""Learners to take, for messages."""


def targets_of(objective: Objective) -> Targets | None:
    """What tasks with an objective predict; None for an objective of the user's own that does not say."""
    if objective.task_specific_classes:
        return "own"
    if rates_items(objective) and (levels := levels_of(objective)):
        return "clicks" if len(levels) == 2 else "levels"
    named: dict[str, Targets] = {
        "classes": "shared", "labels": "labels", "values": "numbers", "distribution": "spread", "tokens": "text",
        "masks": "masks",
    }  # fmt: skip
    return named.get(objective.predicts or "")


def refuse_by_table(spec: Spec, source: TaskSource, shapes: Shapes) -> None:
    """Raise ValueError if the run file's learner or sections do not go with the tasks, with what does."""
    objective = source.objective
    if (spec.objective and spec.objective.kind == "forecast" and not source.forecasts) or (
        spec.learner.kind == "forecast_ensemble" and not source.forecasts
    ):
        part = "objective forecast" if spec.objective else "learner forecast_ensemble"
        raise ValueError(
            f"{part} is for windows of series, which source {spec.source.kind} does not give: leave it out"
        )
    targets, sort = targets_of(objective), sort_of(shapes)
    for each in learners_of(spec.learner):
        kind, model = each.kind, model_of(each) or spec.model
        own_model = model is not None and ":" in model.kind  # which may predict a standard deviation
        fits = targets in LEARNERS.get(kind, TARGETS) or (targets == "spread" and own_model)
        if targets is not None and not fits:
            raise ValueError(
                f"learner {kind} predicts {_listed(LEARNERS[kind])}, and these tasks have {TARGETS[targets]}: take a "
                f"learner for those, such as {advice_on(targets)}"
            )
        if kind in READ_NAMES and not source.has_names:
            raise ValueError(
                f"learner {kind} reads the names of classes, which these tasks lack: write names: labels in the "
                "source, if it is of texts, or of images with an encoder that reads texts"
            )
        if model is None and kind in LEARNERS and sort not in NO_MODEL.get(kind, (ONE_TENSOR,)):
            raise ValueError(
                f"learner {kind} without a model takes {' or '.join(NO_MODEL.get(kind, (ONE_TENSOR,)))}, and these "
                f"inputs are {sort}: {_taken_by(kind, sort)}"
            )
    if spec.reject and not objective.task_specific_classes:
        raise ValueError("reject needs tasks with classes of their own, which these do not have: leave it out")
    if spec.pretrain and not objective.task_specific_classes and not has_head(spec):
        raise ValueError(
            "pretrain trains the model on these tasks with their objective, and so needs a model with a last layer, as "
            f"learners such as maml use it; learner {spec.learner.kind} takes features: leave pretrain out"
        )
    if spec.pretrain and spec.pretrain.objective == "contrastive" and not objective.task_specific_classes:
        raise ValueError(
            "pretrain.objective: contrastive needs tasks with classes of their own, which these do not have: write "
            "classification, which trains the model with the objective of the tasks"
        )


def advice_on(targets: Targets) -> str:
    """Learners for targets, as the end of a sentence."""
    words = "; or, if the numbers are names of classes, write target_type: classification in the source"
    return EXAMPLES[targets] + words * (targets in ("numbers", "spread"))


def _listed(targets: tuple[Targets, ...]) -> str:
    return " or ".join(filter(None, [", ".join(TARGETS[each] for each in targets[:-1]), TARGETS[targets[-1]]]))


def _taken_by(kind: str, sort: str) -> str:
    """What to write for inputs that a learner does not take without a model."""
    models = models_of(sort)
    if models and any(argument.supplied in MODELS for argument in describe(our_factory("learner", kind))):
        return f"give the run file a model that makes features of them, {' or '.join(models)}"
    learners = [name for name, sorts in NO_MODEL.items() if sort in sorts]
    return f"take a learner for those, such as {learners[0] if learners else 'maml with a model'}"


def markdown() -> str:
    """The tables as docs/run-files.md has them."""
    rows = ["| tasks of the source | predict | from |", "| --- | --- | --- |"]
    for (targets, sorts), names in _grouped(SOURCES).items():
        rows.append(f"| {_code(names)} | {'; '.join(TARGETS[each] for each in targets)} | {'; '.join(sorts)} |")
    rows += ["", f"| learner | {' | '.join(TARGETS.values())} |", "| --- |" + " --- |" * len(TARGETS)]
    for taken, names in _grouped(LEARNERS).items():
        cells = [_cell(names, each) if each in taken else "" for each in TARGETS]
        rows.append(f"| {_code(names)} | {' | '.join(cells)} |")
    rows += ["", "| inputs | models that take them | learners that take them without a model |", "| --- | --- | --- |"]
    without = [kind for kind in LEARNERS if not _needs_a_model(kind)]
    for sort in (ONE_TENSOR, *SORTS.values()):
        alone = [kind for kind in without if sort in NO_MODEL.get(kind, (ONE_TENSOR,))]
        rows.append(f"| {sort} | {_code(models_of(sort))} | {_code(alone)} |")
    return "\n".join(rows) + "\n"


def _cell(learners: list[str], targets: Targets) -> str:
    if "forecast_ensemble" in learners:
        return "of series"
    by_head = any(LEARNERS[kind] in (BY_HEAD, BY_EACH_LABEL, BY_PARTS) for kind in learners)
    return "if complete" if by_head and targets in ("shared", "clicks") else "yes"


def _needs_a_model(learner: str) -> bool:
    return any(each.supplied in MODELS and not each.optional for each in describe(our_factory("learner", learner)))


Value = TypeVar("Value")


def _grouped(table: Mapping[str, Value]) -> dict[Value, list[str]]:
    """The names by their entry in a table."""
    groups: dict[Value, list[str]] = {}
    for name, entry in table.items():
        groups.setdefault(entry, []).append(name)
    return groups


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
