"""The plans that `kshot auto` chooses among: partial run files with a learner, and a model and settings for it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from kshot.app.build import ONE_TENSOR, SORTS, Shapes, sort_of
from kshot.app.goes_with import LEARNERS, Targets, targets_of
from kshot.evaluation.target import Target
from kshot.objectives import Objective

Section = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A way to learn the tasks of a source.

    Attributes:
        name: its name, under which experience knows it.
        learner, model, pretrain, train: sections of a run file; None leaves one out.
    """

    name: str
    learner: Section
    model: Section | None = None
    pretrain: Section | None = None
    train: Section | None = None

    @property
    def slug(self) -> str:
        """The name as that of a folder and a run."""
        return re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")

    @property
    def overrides(self) -> list[str]:
        """The sections as `PATH=VALUE` of a run file."""
        sections = {"learner": self.learner, "model": self.model, "pretrain": self.pretrain, "train": self.train or {}}
        return [f"{name}={json.dumps(section)}" for name, section in sections.items()]

    @property
    def about(self) -> str:
        """The name, with the weights of a mixture."""
        weights = self.learner.get("weights") if self.learner["kind"] == MIXTURE else None
        if not weights:
            return self.name
        parts = sorted(weights.items(), key=lambda part: -part[1])
        return f"{self.name} ({' + '.join(f'{weight:.2f} {name}' for name, weight in parts)})"

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        sections = {"learner": self.learner, "model": self.model, "pretrain": self.pretrain, "train": self.train}
        return {"name": self.name} | {name: section for name, section in sections.items() if section is not None}


MIXTURE = "mixture"
BASELINE = "kshot.evaluation.baselines:baseline"


def baseline_plan(name: str, target: Target) -> Plan:
    """The plan to keep a simple baseline, whose settings are chosen by the metric of a target."""
    return Plan(name, {"kind": BASELINE, "name": name, "target": str(replace(target, value=0.0))})


def _train(steps: int, tasks: int, outer_lr: float, mode: str = "auto") -> Section:
    return {
        "steps_per_round": steps, "tasks_per_step": tasks, "outer_lr": outer_lr, "mode": mode, "schedule": "constant",
    }  # fmt: skip


CONV = {"kind": "conv4", "channels": 32}
WIDE = {"kind": "conv4", "channels": 64}
ON_CLASSES = {"steps": 600, "batch": 128, "outer_lr": 0.005}
LONGER = {"steps": 2000, "batch": 128, "outer_lr": 0.005, "output": "cosine"}
CONTRAST = {"steps": 60, "batch": 72, "outer_lr": 0.00005, "objective": "contrastive", "temperature": 0.1}
MLP, DEEP, LINEAR = ({"kind": "mlp", "hidden": hidden} for hidden in ([64, 64], [128, 128, 128], []))
PLDA = {"kind": "plda", "within": 0.9, "between": 0.6, "scale": 0.3}
MAML = {"kind": "maml", "inner_lr": 0.05, "steps": 5}
IMAGES, VECTORS = _train(50, 4, 0.001, "auto"), _train(200, 8, 0.001, "vmap")
GENTLE = _train(50, 4, 0.0003)

OF_IMAGES = (
    Plan("protonet, pretrained", {"kind": "protonet"}, CONV, ON_CLASSES, GENTLE),
    Plan("plda, pretrained", PLDA, CONV, ON_CLASSES, GENTLE),
    Plan("feat, pretrained", {"kind": "feat"}, CONV, ON_CLASSES, GENTLE),
    Plan("simpleshot, pretrained", {"kind": "simpleshot"}, CONV, ON_CLASSES, GENTLE),
    Plan("protonet, wide, pretrained longer", {"kind": "protonet", "batchnorm": "running"}, WIDE, LONGER, GENTLE),
    Plan("logistic regression head, pretrained", {"kind": "logistic_regression"}, CONV, ON_CLASSES, GENTLE),
    Plan("r2d2, pretrained", {"kind": "r2d2"}, CONV, ON_CLASSES, GENTLE),
    Plan("frn, pretrained", {"kind": "frn"}, CONV, ON_CLASSES, GENTLE),
    Plan("deep_bdc, pretrained", {"kind": "deep_bdc"}, CONV, ON_CLASSES, GENTLE),
    Plan("protonet", {"kind": "protonet"}, CONV, None, IMAGES),
    Plan("maml, pretrained", MAML, CONV, ON_CLASSES, GENTLE),
    Plan("proto_maml, pretrained", {"kind": "proto_maml", "inner_lr": 0.05}, CONV, ON_CLASSES, GENTLE),
    Plan("anil, pretrained", {"kind": "anil", "inner_lr": 0.05, "steps": 5}, CONV, ON_CLASSES, GENTLE),
    Plan("maml", MAML, CONV, None, IMAGES),
)
OF_VECTORS = (
    Plan("protonet, linear", {"kind": "protonet"}, LINEAR, None, VECTORS),
    Plan("plda", PLDA, LINEAR, None, VECTORS),
    Plan("probe", {"kind": "probe"}, LINEAR, None, VECTORS),
    Plan("simpleshot", {"kind": "simpleshot"}, LINEAR, None, VECTORS),
    Plan("logistic regression head", {"kind": "logistic_regression"}, MLP, None, VECTORS),
    Plan("protonet", {"kind": "protonet"}, MLP, None, VECTORS),
    Plan("r2d2", {"kind": "r2d2"}, MLP, None, VECTORS),
    Plan("feat, linear", {"kind": "feat"}, LINEAR, None, VECTORS),
    Plan("prior_fitted", {"kind": "prior_fitted"}, None, None, _train(100, 4, 0.0005, "vmap")),
    Plan("matching network", {"kind": "matching_net"}, MLP, None, VECTORS),
    Plan("maml", MAML, MLP, None, VECTORS),
    Plan("proto_maml", {"kind": "proto_maml", "inner_lr": 0.05}, MLP, None, VECTORS),
)
OF_TEXTS = (
    Plan("plda, tuned by contrast", PLDA, {"kind": "encoder", "tune": "full", "layers": 2}, CONTRAST, GENTLE),
    Plan("plda, LoRA", PLDA, {"kind": "encoder"}, CONTRAST | {"outer_lr": 0.001}, GENTLE),
    Plan("probe, tuned by contrast", {"kind": "probe"}, {"kind": "encoder", "tune": "full", "layers": 2}, CONTRAST,
         GENTLE),
    Plan("protonet, LoRA", {"kind": "protonet"}, {"kind": "encoder"}, None, GENTLE),
)  # fmt: skip
TUNED = {"kind": "encoder", "tune": "full", "layers": 4}
CONTRAST_OF_IMAGES = {"steps": 80, "batch": 72, "outer_lr": 0.0001, "objective": "contrastive", "temperature": 0.1}
OF_ENCODED_IMAGES = (
    Plan("protonet, cosine, tuned by contrast", {"kind": "protonet", "distance": "cosine"}, TUNED, CONTRAST_OF_IMAGES,
         GENTLE),
    Plan("simpleshot, tuned by contrast", {"kind": "simpleshot"}, TUNED, CONTRAST_OF_IMAGES, GENTLE),
    Plan("plda, frozen", PLDA, {"kind": "encoder", "tune": "head"}, None, GENTLE),
    Plan("protonet, LoRA", {"kind": "protonet"}, {"kind": "encoder"}, None, GENTLE),
)  # fmt: skip
OF_GROUPS = (
    Plan("boosted_residual", {"kind": "boosted_residual"}, None, None, VECTORS),
    Plan("partial_pooling", {"kind": "partial_pooling"}, None, None, VECTORS),
    Plan("cnp", {"kind": "cnp"}, None, None, VECTORS),
    Plan("attentive_np", {"kind": "attentive_np"}, None, None, _train(100, 8, 0.0005, "vmap")),
    Plan("tnp_d", {"kind": "tnp_d"}, None, None, _train(100, 8, 0.0005, "vmap")),
    Plan("alpaca", {"kind": "alpaca"}, MLP, None, VECTORS),
    Plan("r2d2", {"kind": "r2d2"}, MLP, None, VECTORS),
    Plan("maml", {"kind": "maml", "inner_lr": 0.01, "steps": 5}, MLP, None, VECTORS),
    Plan("meta_sgd", {"kind": "meta_sgd", "inner_lr": 0.01}, MLP, None, VECTORS),
    Plan("reptile", {"kind": "reptile", "inner_lr": 0.01}, MLP, None, _train(200, 8, 0.1, "auto")),
    Plan("anil", {"kind": "anil", "inner_lr": 0.05, "steps": 5}, DEEP, None, VECTORS),
    Plan("prior_fitted", {"kind": "prior_fitted"}, None, None, _train(100, 4, 0.0005, "vmap")),
)
OF_SERIES = (Plan("forecast_ensemble", {"kind": "forecast_ensemble"}, None, None, VECTORS),)
RATED = _train(100, 32, 0.001, "vmap")
OF_RATINGS = (
    Plan("item_similarity", {"kind": "item_similarity"}, None, None, RATED),
    Plan("alpaca, 8 factors", {"kind": "alpaca", "item_penalty": 100}, {"kind": "factorisation", "factors": 8}, None,
         RATED),
    Plan("alpaca", {"kind": "alpaca"}, {"kind": "factorisation"}, None, RATED),
    Plan("maml, two towers", {"kind": "maml", "inner_lr": 0.05}, {"kind": "two_tower"}, None, RATED),
    Plan("melu", {"kind": "melu", "inner_lr": 0.05}, {"kind": "rating_mlp"}, None, RATED),
)  # fmt: skip
OF_LABELLED_IMAGES = (
    Plan("protonet", {"kind": "protonet"}, CONV, None, IMAGES),
    Plan("r2d2", {"kind": "r2d2"}, CONV, None, IMAGES),
    Plan("maml", MAML, CONV, None, IMAGES),
)
OF_LABELLED_VECTORS = (
    Plan("r2d2, linear", {"kind": "r2d2"}, LINEAR, None, VECTORS),
    Plan("protonet, linear", {"kind": "protonet"}, LINEAR, None, VECTORS),
    Plan("logistic regression head, linear", {"kind": "logistic_regression"}, LINEAR, None, VECTORS),
    Plan("maml", MAML, MLP, None, VECTORS),
)
PIXELS, AS_THEY_ARE = {"kind": "segmenter"}, {"kind": "segmenter", "channels": []}
OF_MASKS = (
    Plan("r2d2", {"kind": "r2d2"}, PIXELS, None, IMAGES),
    Plan("protonet", {"kind": "protonet"}, PIXELS, None, IMAGES),
    Plan("maml", MAML, PIXELS, None, IMAGES),
)
OF_MAPS = (
    Plan("r2d2, frozen", {"kind": "r2d2"}, AS_THEY_ARE, None, IMAGES),
    Plan("protonet, frozen", {"kind": "protonet"}, AS_THEY_ARE, None, IMAGES),
)
LSTM = {"kind": "language_model", "body": "lstm", "width": 128, "embedding": 64}
READ = {"steps": 1000, "batch": 64, "outer_lr": 0.004}
SLOW = _train(25, 2, 0.0001)
OF_RUNNING_TEXT = (
    Plan("dynamic evaluation, Adam", {"kind": "dynamic_evaluation", "inner_lr": 0.003, "rule": "adam", "rates": "one",
         "passes": 2}, LSTM, READ, SLOW),
    Plan("dynamic evaluation, one pass", {"kind": "dynamic_evaluation", "inner_lr": 0.001, "rule": "adam",
         "rates": "one"}, LSTM, READ, SLOW),
    Plan("maml", {"kind": "maml", "inner_lr": 0.1, "steps": 5, "order": 1}, LSTM, READ, SLOW),
    Plan("meta_sgd", {"kind": "meta_sgd", "inner_lr": 0.1, "steps": 2, "order": 1}, LSTM, READ, SLOW),
)  # fmt: skip


MOST_FEATURES = 400
"""Of tasks for `prior_fitted`, whose time grows with their square: with 384 a task takes a second, with 1,280 13."""


def plans_for(objective: Objective, shapes: Shapes, *, forecasts: bool) -> tuple[Plan, ...]:
    """The plans that may suit tasks, the most promising without experience first."""
    targets = targets_of(objective)
    wide = isinstance(shapes["inputs"], list) and math.prod(shapes["inputs"]) > MOST_FEATURES
    return tuple(
        plan
        for plan in _of_kind(targets, shapes, forecasts=forecasts)
        if (targets is None or targets in LEARNERS[plan.learner["kind"]])
        and not (wide and plan.learner["kind"] == "prior_fitted")
    )


def _of_kind(targets: Targets | None, shapes: Shapes, *, forecasts: bool) -> tuple[Plan, ...]:
    """The plans for a kind of inputs and targets."""
    sort = sort_of(shapes)
    if targets == "text":
        return OF_RUNNING_TEXT
    if sort == SORTS["counts"]:
        return OF_RATINGS
    if targets == "masks":
        return OF_MASKS if shapes["inputs"][0] in (1, 3) else OF_MAPS
    if targets == "labels" and sort == ONE_TENSOR:
        return OF_LABELLED_IMAGES if len(shapes["inputs"]) == 3 else OF_LABELLED_VECTORS
    if sort == SORTS["encoder"]:
        return OF_ENCODED_IMAGES if isinstance(shapes["inputs"], list) and len(shapes["inputs"]) == 3 else OF_TEXTS
    if sort == ONE_TENSOR and len(shapes["inputs"]) == 3 and targets == "own":
        return OF_IMAGES
    return OF_VECTORS if targets == "own" else OF_SERIES * forecasts + OF_GROUPS
