"""The baselines of a run: their selection, tuning and evaluation on the learner's tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from kshot import learners, objectives
from kshot.app.build import Shapes, build_learner, build_model, has_head
from kshot.app.failures import Failures
from kshot.app.pretraining import options_of_baselines, tunes_encoder
from kshot.app.schema import Part
from kshot.app.spec import BASELINES, NEED_PRETRAINING, Spec
from kshot.app.without_pretraining import NAME as WITHOUT
from kshot.evaluation.baselines import Candidates, best_first, of_fields, without_model
from kshot.evaluation.evaluate import Evaluation, Scored, evaluate
from kshot.evaluation.target import Target
from kshot.learner import Learner
from kshot.learners.baselines import features, known_classes, label_names
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.protonet import Prototypes
from kshot.learners.ratings.coverage import Coverage, CoverageMeter
from kshot.models.encoder import Encoder
from kshot.objectives import Objective
from kshot.sources.ratings.tasks import ratings_of
from kshot.tasks.source import TaskSource
from kshot.types import Split

NUM_RANKED = 100  # tasks for whose users the whole catalogue is ranked
LOWER_RATES = (1.0, 0.1, 0.01)  # factors of inner_lrs; the next one is tried if no rate gives a finite figure


@dataclass(frozen=True)
class Setting:
    """What the baselines of a run are made of.

    Attributes:
        shapes: as the learner's, with the targets of the tasks that the baselines are scored on.
        pretrained: the models before meta-training: that of the run file, and one that was pretrained for as long as
            the learner trained; as far as they exist.
        rate_factor: factor of the learning rates that are tuned.
    """

    spec: Spec
    source: TaskSource
    shapes: Shapes
    device: torch.device
    pretrained: Sequence[nn.Module] = ()
    rate_factor: float = 1.0

    def model(self, *, head: bool, learner: Part | None = None) -> nn.Module:
        """The model of the run file with its initial weights, on the CPU."""
        return build_model(self.spec, self.shapes, head=head, learner=learner)

    def pretrained_copies(self, *, head: bool) -> list[nn.Module]:
        """New models with the weights of each pretrained one, apart from a head of other classes.

        Raises:
            ValueError: there is no pretrained model.
        """
        if not self.pretrained:
            raise ValueError("there is no pretrained model: the source gives no examples to pretrain a model on")
        return [with_weights(self.model(head=head), pretrained) for pretrained in self.pretrained]

    def pretrained_bodies(self) -> list[nn.Module]:
        """New modules that give the features of each pretrained model."""
        is_encoder = self.spec.model is not None and self.spec.model.kind == "encoder"  # without a head, it has a cache
        return [body_of(model) for model in self.pretrained_copies(head=has_head(self.spec) and not is_encoder)]

    def rates(self) -> list[dict[str, Any]]:
        """The settings of `inner_lr` and `steps` that are tuned."""
        options = self.spec.baselines
        steps = options.steps if isinstance(options.steps, list) else [options.steps]
        rates = [self.rate_factor * lr for lr in options.inner_lrs]
        return [{"inner_lr": lr, "steps": count} for count, lr in product(steps, rates)]


def with_weights(model: nn.Module, pretrained: nn.Module) -> nn.Module:
    """Copy the weights of the same names and shapes into a model, and return it."""
    own = model.state_dict()
    given = {name: leaf for name, leaf in pretrained.state_dict().items() if name in own}
    model.load_state_dict({k: v for k, v in given.items() if v.shape == own[k].shape}, strict=False)
    return model


def baselines_of(setting: Setting) -> dict[str, Candidates]:
    """The baselines of the run file, or those that suit the tasks, by their names in reports.

    Raises:
        ValueError: a baseline that does not suit the tasks.
    """
    named = setting.spec.baselines.names
    known = _suitable(setting)
    if named is None:
        return known
    known = _generic(setting) | known
    chosen: dict[str, Candidates] = {}
    for label, baseline in labels_of(named).items():
        if label == WITHOUT:  # made of other inputs than the tasks have
            continue
        if isinstance(baseline, Part):
            chosen[label] = partial(_configured, setting, baseline)
        elif baseline in known:
            chosen[label] = known[baseline]
        else:
            raise ValueError(f"baseline {baseline!r} does not suit these tasks, which {', '.join(known)} do")
    return chosen


def _suitable(setting: Setting) -> dict[str, Candidates]:
    """The baselines that an expert would use for these tasks, by name."""
    spec, objective = setting.spec, setting.source.objective
    if objectives.rates_items(objective):
        return of_fields(setting.source)
    generic = _generic(setting)
    of_field = of_fields(setting.source) | _of_features(setting)
    names: list[str] = []
    # The models of a run file predict no standard deviation, an encoder is pretrained, and what is shared may be large.
    suits = spec.model is not None and spec.model.kind != "encoder" and not spec.shard_frozen
    if suits and objective.predicts != "distribution":
        names.append("scratch")
    if setting.pretrained:
        # fine-tuning an encoder on each of hundreds of tasks takes hours; it is tuned once, by contrast
        names += ["fine_tune"] * (spec.model is not None and spec.model.kind != "encoder")
        shared = objective.classifies and not objective.task_specific_classes
        names += ["pretrained_centroid"] * shared + ["pretrained"] * (not objective.task_specific_classes)
    names += without_model(setting.source)
    return of_field | {name: generic[name] for name in names if name not in of_field}


def _of_features(setting: Setting) -> dict[str, Candidates]:
    """The baselines on the features of the run's encoder, and of the pretrained models."""
    source, found = setting.source, dict[str, Candidates]()
    if setting.spec.model is not None and setting.spec.model.kind == "encoder":
        encoder = setting.model(head=False).requires_grad_(False)
        for of_encoder in (features, label_names, known_classes):
            found |= of_encoder.baselines(source, encoder)
    by_contrast = options_of_baselines(setting.spec).get("objective") == "contrastive"
    for body in setting.pretrained_bodies() if setting.pretrained else ():
        for name, candidates in features.pretrained_baselines(source, body, contrast=by_contrast).items():
            found[name] = _both(found.get(name), candidates)
    return found


def _both(one: Candidates | None, other: Candidates) -> Candidates:
    return other if one is None else lambda: [*one(), *other()]


def _generic(setting: Setting) -> dict[str, Candidates]:
    """The baselines that need nothing but the model of the run file and the objective."""
    functions: dict[str, Callable[[Setting], Sequence[Learner]]] = {
        "scratch": _scratch,
        "fine_tune": _fine_tune,
        "pretrained": _pretrained,
        "pretrained_centroid": _pretrained_centroid,
        "pretrained_probe": partial(_probe, "pretrained_probe"),
        "contrast_then_probe": partial(_probe, "contrast_then_probe"),
        "centroid": _centroid,
        "support_mean": lambda setting: [learners.SupportMean(setting.source.objective)],
    }
    return {name: partial(function, setting) for name, function in functions.items()}


def _configured(setting: Setting, part: Part) -> list[Learner]:
    model = setting.model(head=has_head(setting.spec, part), learner=part)
    for pretrained in setting.pretrained[:1]:
        with_weights(model, pretrained)
    return [build_learner(setting.spec, model, setting.shapes, part)]


def _scratch(setting: Setting) -> list[Learner]:
    objective, seed = setting.source.objective, setting.spec.seed
    whole = setting.spec.model_copy(update={"shard_frozen": False})  # it draws the frozen weights too
    model = build_model(whole, setting.shapes, head=True)
    return [learners.from_scratch(model, **each, objective=objective, seed=seed) for each in setting.rates()]


def _fine_tune(setting: Setting) -> list[Learner]:
    options: dict[str, Any] = {"rule": setting.spec.baselines.rule, "objective": setting.source.objective}
    models = setting.pretrained_copies(head=True)
    return [learners.fine_tune(model, **each, **options) for model in models for each in setting.rates()]


def _pretrained(setting: Setting) -> list[Learner]:
    options: dict[str, Any] = {"inner_lr": 1.0, "steps": 0, "objective": setting.source.objective}
    return [learners.fine_tune(model, **options) for model in setting.pretrained_copies(head=True)]


def _pretrained_centroid(setting: Setting) -> list[Learner]:
    return [HeadLearner(body, Prototypes(), setting.source.objective) for body in setting.pretrained_bodies()]


def _probe(name: str, setting: Setting) -> list[Learner]:
    found = _of_features(setting)
    if name in found:
        return list(found[name]())
    if not setting.pretrained:
        raise ValueError(f"baseline {name!r} needs a pretrained model, and there is none")
    objective = "contrastive" if name == "contrast_then_probe" else "classification"
    raise ValueError(f"baseline {name!r} needs classes of each task's own, and pretrain: {{objective: {objective}}}")


def _centroid(setting: Setting) -> list[Learner]:
    objective = setting.source.objective
    if setting.spec.model is not None and setting.spec.model.kind == "encoder":
        return [HeadLearner(setting.model(head=False), Prototypes(), objective)]
    return [learners.nearest_centroid(objective)]


def body_of(model: nn.Module) -> nn.Module:
    """The part of a model that gives the features: its `body`, or all of it if it has no head."""
    headless = isinstance(model, Encoder) and model.head is None
    return model if headless else dict(model.named_children()).get("body", model)


def labels_of(baselines: Iterable[str | Part]) -> dict[str, str | Part]:
    """The baselines by their names in reports; a kind that occurs twice is numbered."""
    labels: dict[str, str | Part] = {}
    for baseline in baselines:
        name = baseline.kind if isinstance(baseline, Part) else baseline
        taken = sum(label.split(" #")[0] == name for label in labels)
        labels[f"{name} #{taken + 1}" if taken else name] = baseline
    return labels


def describe(label: str, spec: Spec) -> str:
    """The description of a baseline for reports."""
    if label in BASELINES:
        return BASELINES[label]
    baseline = labels_of(spec.baselines.names or [])[label]
    assert isinstance(baseline, Part)
    options = ", ".join(f"{name} {value}" for name, value in baseline.model_dump(exclude={"kind"}).items())
    return f"{baseline.kind} ({options}), not meta-trained" if options else f"{baseline.kind}, not meta-trained"


def need_pretraining(spec: Spec, objective: Objective) -> bool:
    """Whether a baseline of the run file, or one that suits the tasks, starts from a pretrained model.

    Raises:
        ValueError: a baseline of the run file does, and there is neither a `pretrain` section nor a budget for it.
    """
    if spec.model is None:
        return False
    if spec.baselines.names is None:
        if tunes_encoder(spec):
            return spec.pretrain is not None or objective.task_specific_classes
        from_scratch = spec.model.kind != "encoder" and not objectives.rates_items(objective)
        return spec.pretrain is not None or (from_scratch and objective.predicts != "distribution")
    names = [name for name in spec.baselines.names if isinstance(name, str) and name in NEED_PRETRAINING]
    if names and spec.pretrain is None and not spec.baselines.budget:
        raise ValueError(
            f"baseline {names[0]!r} needs a pretrained model: give the run file a 'pretrain' section, or "
            "'baselines' a budget"
        )
    return bool(names)


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
    setting: Setting,
    split: Split,
    num_tasks: int,
    observer: Callable[[str], Callable[[Scored], None]],
    coverage: dict[str, Coverage],
    failures: Failures,
) -> dict[str, Evaluation]:
    """Evaluate each baseline on the first tasks of a split, with the hyperparameters that are best on validation tasks.

    A baseline that raises an error is recorded as a failure, and the others are evaluated. One without a finite figure
    is tried again with its next best hyperparameters.

    Args:
        split, num_tasks: as in `evaluate`.
        observer: gives the function that is called after each task of a baseline.
        coverage: receives the catalogue coverage of each baseline.
    """
    target = Target.parse(setting.spec.target)
    options: dict[str, Any] = {"split": split, "num_tasks": num_tasks, "audit": False}
    evaluations: dict[str, Evaluation] = {}
    for label in baselines_of(setting):
        with failures.recorded(f"baseline {label}"):
            for learner in _best_first(label, setting, target):
                evaluations[label] = evaluate_with_coverage(
                    label, learner, setting.source, coverage, observe=observer(label), **options
                )
                if math.isfinite(target.of(evaluations[label].metrics).mean):
                    break
            else:
                failures.add(f"baseline {label}", f"no setting of its hyperparameters gives a finite {target.metric}")
    return evaluations


def _best_first(label: str, setting: Setting, target: Target) -> Iterator[Learner]:
    """The candidates of a baseline, those with finite figures on validation tasks in the order of these figures.

    Then, if it takes gradient steps, those with lower learning rates.
    """
    for factor in LOWER_RATES if label in ("scratch", "fine_tune") else (1.0,):
        candidates = baselines_of(replace(setting, rate_factor=factor))[label]()
        num_val_tasks = setting.spec.baselines.num_val_tasks
        yield from best_first(candidates, setting.source, target, num_val_tasks=num_val_tasks, device=setting.device)
