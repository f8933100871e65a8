"""The baselines that a learner is compared with: their choice, their tuning, and their figures on the same tasks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import nn

from kshot import learners, objectives
from kshot.app.build import Shapes, build_learner, build_model, has_head
from kshot.app.schema import Part
from kshot.app.spec import BaselineName, Spec
from kshot.evaluation.evaluate import Evaluation, Scored, evaluate
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.protonet import Prototypes
from kshot.learners.ratings.recommenders import GRIDS, Ratings, recommender
from kshot.models.encoder import Encoder
from kshot.objectives import Objective
from kshot.sources.ratings.tasks import ratings_of
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.types import Split

COVERED = 100  # tasks whose users are ranked the whole catalogue
ABOUT: dict[BaselineName, str] = {
    "scratch": "the same model, fitted to the support set alone from random weights",
    "fine_tune": "the model after {steps} steps of pretraining on all training classes, fine-tuned on the support set",
    "pretrained": "the model after {steps} steps of pretraining, without adaptation",
    "pretrained_centroid": "nearest class mean in the features of the model after {steps} steps of pretraining",
    "centroid": "nearest class mean of the raw inputs, or of the features of a pretrained encoder before any training",
    "support_mean": "the mean of the support targets, whatever the input",
    "global_mean": "the mean of the training ratings",
    "user_mean": "the user's mean, shrunk to that of all",
    "item_mean": "the item's mean in training, shrunk to that of all",
    "bias": "the mean of all, plus shrunk offsets of the user and the item",
    "popularity": "how often the item was rated in training",
    "item_knn": "offsets, and the ratings of similar items",
    "matrix_factorisation": "offsets, and factors to which the user's are fitted",
}
NEED_PRETRAINING = {"fine_tune", "pretrained", "pretrained_centroid"}


def names_of(spec: Spec, objective: Objective) -> list[BaselineName | Part]:
    """The baselines of the run file, or by default those that fit the objective.

    Raises:
        ValueError: one that needs a pretrained model, where the run file has no pretraining.
    """
    if spec.baselines.names is not None:
        for name in spec.baselines.names:
            if isinstance(name, str) and name in NEED_PRETRAINING and spec.pretrain is None:
                raise ValueError(f"baseline {name!r} needs a pretrained model: give the run file a 'pretrain' section")
        return spec.baselines.names
    if objectives.rates_items(objective):
        return list(GRIDS)
    wants_spread = objective.predicts == "distribution"  # which no model of a run file predicts by itself
    fits_alone = spec.model is not None and spec.model.kind != "encoder" and not wants_spread
    names: list[BaselineName | Part] = ["scratch"] if fits_alone else []
    if spec.pretrain:
        names += ["fine_tune", "pretrained_centroid"] if objective.classifies else ["fine_tune", "pretrained"]
    if objective.classifies:
        names.append("centroid")
    elif objective.predicts in ("values", "distribution"):
        names.append("support_mean")
    return names


def labels_of(baselines: list[BaselineName | Part]) -> dict[str, BaselineName | Part]:
    """The baselines by the names that reports call them; a kind that is there twice is numbered."""
    labels: dict[str, BaselineName | Part] = {}
    for baseline in baselines:
        name = baseline.kind if isinstance(baseline, Part) else baseline
        taken = sum(label.split(" #")[0] == name for label in labels)
        labels[f"{name} #{taken + 1}" if taken else name] = baseline
    return labels


def about(label: str, spec: Spec) -> str:
    """A phrase that describes a baseline."""
    if label in ABOUT:
        return ABOUT[label].format(steps=spec.pretrain.steps if spec.pretrain else 0)
    baseline = labels_of(spec.baselines.names or [])[label]
    assert isinstance(baseline, Part)
    options = ", ".join(f"{name} {value}" for name, value in baseline.model_dump(exclude={"kind"}).items())
    return f"{baseline.kind} ({options}), not meta-trained" if options else f"{baseline.kind}, not meta-trained"


def evaluate_baselines(
    spec: Spec,
    source: TaskSource,
    pretrained: nn.Module | None,
    shapes: Shapes,
    target: Target,
    device: torch.device,
    split: Split,
    tasks: int,
    watch: Callable[[str, Scored], None],
) -> dict[str, Evaluation]:
    """Each baseline on the first tasks of a split; one with rates to choose from has the best on validation tasks."""
    evaluations: dict[str, Evaluation] = {}
    for label, baseline in labels_of(names_of(spec, source.objective)).items():
        candidates = _candidates(baseline, spec, source, pretrained, shapes)
        scores = []
        for candidate in candidates if len(candidates) > 1 else []:
            with during(source, "tuning"):
                val = evaluate(
                    candidate.to(device), source, split="val", tasks=spec.baselines.num_val_tasks, audit=False
                )
            scores.append(target.of(val.metrics).mean)
        choose = max if target.at_least else min
        best = candidates[scores.index(choose(scores))] if scores else candidates[0]

        def observe(scored: Scored, label: str = label) -> None:
            watch(label, scored)

        evaluations[label] = evaluate(
            best.to(device), source, split=split, tasks=tasks, observe=observe, audit=False, coverage=COVERED
        )
    return evaluations


def _candidates(
    baseline: BaselineName | Part, spec: Spec, source: TaskSource, pretrained: nn.Module | None, shapes: Shapes
) -> list[Learner]:
    """The learners among which the best on validation tasks is the baseline."""
    options, objective = spec.baselines, source.objective
    if isinstance(baseline, Part):
        model = build_model(spec, shapes, head=has_head(spec, baseline), learner=baseline)
        if pretrained is not None:
            model.load_state_dict(pretrained.state_dict(), strict=False)
        return [build_learner(spec, model, shapes, baseline)]
    if baseline in GRIDS:
        ratings = ratings_of(source)
        if ratings is None:
            raise ValueError(f"baseline {baseline} is for tasks of ratings, which these are not")
        with during(source, "training"):
            log = ratings.training_log()
        fitted = Ratings(*log, num_items=len(ratings.preprocessor.items))
        return [recommender(baseline, fitted, objective, **candidate) for candidate in GRIDS[baseline]]
    if baseline == "centroid":
        if spec.model is not None and spec.model.kind == "encoder":
            return [HeadLearner(build_model(spec, shapes, head=False), Prototypes(), objective)]
        return [learners.nearest_centroid(objective)]
    if baseline == "support_mean":
        return [learners.SupportMean(objective)]
    if baseline == "pretrained_centroid":
        assert pretrained is not None  # ensured by `names_of`
        gives_features = isinstance(pretrained, Encoder) and pretrained.head is None
        body = pretrained if gives_features else dict(pretrained.named_children()).get("body", pretrained)
        return [HeadLearner(body, Prototypes(), objective)]
    model = build_model(spec, shapes, head=True)
    steps = options.steps if isinstance(options.steps, list) else [options.steps]
    tried = list(product(steps, options.inner_lrs))
    if baseline == "scratch":
        return [
            learners.from_scratch(model, inner_lr=lr, steps=count, objective=objective, seed=spec.seed)
            for count, lr in tried
        ]
    assert pretrained is not None
    model.load_state_dict(pretrained.state_dict(), strict=False)
    if baseline == "pretrained":
        return [learners.fine_tune(model, inner_lr=1.0, steps=0, objective=objective)]
    return [
        learners.fine_tune(model, inner_lr=lr, steps=count, rule=options.rule, objective=objective)
        for count, lr in tried
    ]
