"""The baselines that stand beside a learner: which, how they are tuned, and their figures on the same tasks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import nn

from kshot import learners, objectives
from kshot.app.build import Shapes, build_model
from kshot.app.spec import BaselineName, EncoderSpec, Spec
from kshot.evaluation.evaluate import Evaluation, Scored, evaluate
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.learners.heads.protonet import HeadLearner, Prototypes
from kshot.learners.ratings.recommenders import GRIDS, Ratings, recommender
from kshot.models.encoder import Encoder
from kshot.objectives import Objective
from kshot.sources.ratings.source import ratings_of
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.types import Split

COVERED = 100  # tasks whose users are ranked the whole catalogue
ABOUT: dict[str, str] = {
    "scratch": "the same model, fitted to the support set alone from random weights",
    "fine_tune": "the model after {steps} steps of pretraining on all training classes, fine-tuned on the support set",
    "pretrained": "the model after {steps} steps of pretraining, as it is: it does not adapt",
    "pretrained_centroid": "nearest class mean in the features of the model after {steps} steps of pretraining",
    "centroid": "nearest class mean of the raw inputs, or of what a pretrained encoder makes of them as it comes",
    "support_mean": "the mean of the support targets, whatever the input",
    "global_mean": "the mean of the training ratings",
    "user_mean": "the user's mean, shrunk to that of all",
    "item_mean": "the item's mean in training, shrunk to that of all",
    "bias": "the mean of all, plus shrunk offsets of the user and the item",
    "popularity": "how often the item was rated in training",
    "item_knn": "offsets, and the ratings of like items",
    "matrix_factorisation": "offsets, and factors into which the user is folded",
}


def names_of(spec: Spec, objective: Objective) -> list[BaselineName]:
    """The baselines that the run file names, or those that fit what the tasks ask.

    Raises:
        ValueError: one that needs a pretrained model, where the run file has no pretraining.
    """
    if spec.baselines.names is not None:
        for name in spec.baselines.names:
            if name in ("fine_tune", "pretrained", "pretrained_centroid") and spec.pretrain is None:
                raise ValueError(f"baseline {name!r} needs a pretrained model: give the run file a 'pretrain' section")
        return spec.baselines.names
    if objectives.rates_items(objective):
        return ["global_mean", "user_mean", "item_mean", "bias", "popularity", "item_knn", "matrix_factorisation"]
    tells_no_more = objective.predicts != "distribution"  # no model of a run file tells a spread by itself
    alone = spec.model is not None and not isinstance(spec.model, EncoderSpec) and tells_no_more
    names: list[BaselineName] = ["scratch"] if alone else []
    if spec.pretrain:
        names += ["fine_tune", "pretrained_centroid"] if objective.classifies else ["fine_tune", "pretrained"]
    if objective.classifies:
        names.append("centroid")
    elif objective.predicts in ("values", "distribution"):
        names.append("support_mean")
    return names


def about(name: str, spec: Spec) -> str:
    """What a baseline is, in a phrase."""
    return ABOUT[name].format(steps=spec.pretrain.steps if spec.pretrain else 0)


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
    """Each baseline on the first tasks of a split; where it has a rate to choose, the best on validation tasks."""
    found: dict[str, Evaluation] = {}
    for name in names_of(spec, source.objective):
        candidates = _candidates(name, spec, source, pretrained, shapes)
        scores = []
        for candidate in candidates if len(candidates) > 1 else []:
            with during(source, "tuning"):
                val = evaluate(
                    candidate.to(device), source, split="val", tasks=spec.baselines.num_val_tasks, audit=False
                )
            scores.append(target.of(val.metrics).mean)
        choose = max if target.at_least else min
        best = candidates[scores.index(choose(scores))] if scores else candidates[0]

        def observe(scored: Scored, name: str = name) -> None:
            watch(name, scored)

        found[name] = evaluate(
            best.to(device), source, split=split, tasks=tasks, observe=observe, audit=False, coverage=COVERED
        )
    return found


def _candidates(
    name: BaselineName, spec: Spec, source: TaskSource, pretrained: nn.Module | None, shapes: Shapes
) -> list[Learner]:
    options, objective = spec.baselines, source.objective
    if name in GRIDS:
        ratings = ratings_of(source)
        if ratings is None:
            raise ValueError(f"baseline {name} is for tasks of ratings, which these are not")
        with during(source, "training"):
            log = ratings.training_log()
        fitted = Ratings(*log, size=len(ratings.preprocessor.items))
        return [recommender(name, fitted, objective, **tried) for tried in GRIDS[name]]
    steps = options.steps if isinstance(options.steps, list) else [options.steps]
    if name == "centroid":
        if isinstance(spec.model, EncoderSpec):
            return [HeadLearner(build_model(spec, shapes, head=False), Prototypes(), objective)]
        return [learners.nearest_centroid(objective)]
    if name == "support_mean":
        return [learners.SupportMean(objective)]
    if name == "scratch":
        fresh = build_model(spec, shapes, head=True)
        make: Callable[..., Learner] = learners.from_scratch
        return [
            make(fresh, inner_lr=lr, steps=count, objective=objective, seed=spec.seed)
            for count, lr in product(steps, options.inner_lrs)
        ]
    assert pretrained is not None  # `names_of` saw to it
    if name == "pretrained_centroid":
        whole = isinstance(pretrained, Encoder) and pretrained.head is None
        body = pretrained if whole else dict(pretrained.named_children()).get("body", pretrained)
        return [HeadLearner(body, Prototypes(), objective)]
    model = build_model(spec, shapes, head=True)
    model.load_state_dict(pretrained.state_dict(), strict=False)
    if name == "pretrained":
        return [learners.fine_tune(model, inner_lr=1.0, steps=0, objective=objective)]
    return [
        learners.fine_tune(model, inner_lr=lr, steps=count, rule=options.rule, objective=objective)
        for count, lr in product(steps, options.inner_lrs)
    ]
