"""The baselines of a run: their selection, tuning and evaluation on the learner's tasks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import nn

from kshot import learners, objectives
from kshot.app.build import Shapes, build_learner, build_model, has_head
from kshot.app.schema import Part
from kshot.app.spec import BASELINES, NEED_PRETRAINING, Spec
from kshot.evaluation.evaluate import Evaluation, Scored, evaluate
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.protonet import Prototypes
from kshot.learners.ratings.coverage import Coverage, CoverageMeter
from kshot.learners.ratings.recommenders import GRIDS, Ratings, recommender
from kshot.models.encoder import Encoder
from kshot.objectives import Objective
from kshot.sources.ratings.tasks import ratings_of
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.types import Split

NUM_RANKED = 100  # tasks for whose users the whole catalogue is ranked


def names_of(spec: Spec, objective: Objective) -> list[str | Part]:
    """The baselines of the run file (ValueError if they lack pretraining), or those that suit the objective."""
    if spec.baselines.names is not None:
        for name in spec.baselines.names if spec.pretrain is None else ():
            if isinstance(name, str) and name in NEED_PRETRAINING:
                raise ValueError(f"baseline {name!r} needs a pretrained model: give the run file a 'pretrain' section")
        return spec.baselines.names
    if objectives.rates_items(objective):
        return list(GRIDS)
    names: list[str | Part] = []
    # The models of a run file predict no standard deviation, and an encoder is pretrained.
    if spec.model is not None and spec.model.kind != "encoder" and objective.predicts != "distribution":
        names.append("scratch")
    if spec.pretrain:
        names += ["fine_tune", "pretrained_centroid" if objective.classifies else "pretrained"]
    if objective.classifies:
        names.append("centroid")
    elif objective.predicts in ("values", "distribution", "labels"):
        names.append("support_mean")
    return names


def labels_of(baselines: list[str | Part]) -> dict[str, str | Part]:
    """The baselines by their names in reports; a kind that occurs twice is numbered."""
    labels: dict[str, str | Part] = {}
    for baseline in baselines:
        name = baseline.kind if isinstance(baseline, Part) else baseline
        taken = sum(label.split(" #")[0] == name for label in labels)
        labels[f"{name} #{taken + 1}" if taken else name] = baseline
    return labels


def describe(label: str, spec: Spec) -> str:
    if label in BASELINES:
        return BASELINES[label].format(steps=spec.pretrain.steps if spec.pretrain else 0)
    baseline = labels_of(spec.baselines.names or [])[label]
    assert isinstance(baseline, Part)
    options = ", ".join(f"{name} {value}" for name, value in baseline.model_dump(exclude={"kind"}).items())
    return f"{baseline.kind} ({options}), not meta-trained" if options else f"{baseline.kind}, not meta-trained"


def evaluate_with_coverage(
    name: str,
    learner: Learner,
    source: TaskSource,
    coverage: dict[str, Coverage],
    *,
    observe: Callable[[Scored], None],
    **options: Any,
) -> Evaluation:
    """`evaluate`, which also sets `coverage[name]` to the catalogue coverage if the tasks are of ratings."""
    ratings = ratings_of(source)
    meter = CoverageMeter(learner, ratings) if ratings else None

    def observe_both(scored: Scored) -> None:
        if meter and scored.number < NUM_RANKED:
            meter.add(scored.task, scored.state)
        observe(scored)

    evaluation = evaluate(learner, source, observe=observe_both, **options)
    if meter and (result := meter.result()):
        coverage[name] = result
    return evaluation


def evaluate_baselines(
    spec: Spec,
    source: TaskSource,
    pretrained: nn.Module | None,
    shapes: Shapes,
    device: torch.device,
    split: Split,
    num_tasks: int,
    observer: Callable[[str], Callable[[Scored], None]],
    coverage: dict[str, Coverage],
) -> dict[str, Evaluation]:
    """Evaluate each baseline on the first tasks of a split, with the hyperparameters that are best on validation tasks.

    Args:
        pretrained: the model before meta-training, for the baselines that need one.
        split, num_tasks: as in `evaluate`.
        observer: gives the function that is called after each task of a baseline.
        coverage: receives the catalogue coverage of each baseline.
    """
    target = Target.parse(spec.target)
    evaluations: dict[str, Evaluation] = {}
    for label, baseline in labels_of(names_of(spec, source.objective)).items():
        candidates = [candidate.to(device) for candidate in _candidates(baseline, spec, source, pretrained, shapes)]
        best = candidates[0]
        if len(candidates) > 1:
            options: dict[str, Any] = {"split": "val", "num_tasks": spec.baselines.num_val_tasks, "audit": False}
            with during(source, "tuning"):
                scores = [target.of(evaluate(each, source, **options).metrics).mean for each in candidates]
            best = candidates[scores.index((max if target.at_least else min)(scores))]
        evaluations[label] = evaluate_with_coverage(
            label, best, source, coverage, split=split, num_tasks=num_tasks, observe=observer(label), audit=False
        )
    return evaluations


def _candidates(
    baseline: str | Part, spec: Spec, source: TaskSource, pretrained: nn.Module | None, shapes: Shapes
) -> list[Learner]:
    """The baseline with each setting of its hyperparameters."""
    options, objective = spec.baselines, source.objective
    if isinstance(baseline, Part):
        model = build_model(spec, shapes, head=has_head(spec, baseline), learner=baseline)
        if pretrained is not None:
            model.load_state_dict(pretrained.state_dict(), strict=False)
        return [build_learner(spec, model, shapes, baseline)]
    if kind := next((kind for kind in GRIDS if kind == baseline), None):
        ratings = ratings_of(source)
        if ratings is None:
            raise ValueError(f"baseline {baseline} is for tasks of ratings, which these are not")
        with during(source, "training"):
            log = ratings.training_log()
        fitted = Ratings(*log, num_items=len(ratings.preprocessor.items))
        return [recommender(kind, fitted, objective, **settings) for settings in GRIDS[kind]]
    if baseline == "centroid":
        if spec.model is not None and spec.model.kind == "encoder":
            return [HeadLearner(build_model(spec, shapes, head=False), Prototypes(), objective)]
        return [learners.nearest_centroid(objective)]
    if baseline == "support_mean":
        return [learners.SupportMean(objective)]
    steps = options.steps if isinstance(options.steps, list) else [options.steps]
    grid: list[dict[str, Any]] = [{"inner_lr": lr, "steps": count} for count, lr in product(steps, options.inner_lrs)]
    if baseline == "scratch":
        model = build_model(spec, shapes, head=True)
        return [learners.from_scratch(model, **each, objective=objective, seed=spec.seed) for each in grid]
    assert pretrained is not None  # `names_of` checks it
    if baseline == "pretrained_centroid":
        headless = isinstance(pretrained, Encoder) and pretrained.head is None
        body = pretrained if headless else dict(pretrained.named_children()).get("body", pretrained)
        return [HeadLearner(body, Prototypes(), objective)]
    model = build_model(spec, shapes, head=True)
    model.load_state_dict(pretrained.state_dict(), strict=False)
    if baseline == "pretrained":
        return [learners.fine_tune(model, inner_lr=1.0, steps=0, objective=objective)]
    return [learners.fine_tune(model, **each, rule=options.rule, objective=objective) for each in grid]
