"""From a run file to objects: source, model, learner, policy.

The annotations of a factory's arguments say which of them the run supplies, by the mappings below; the others are
options of the run file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from kshot import objectives
from kshot.annotations import EMPTY, Declared, Supplied
from kshot.app.importing import load
from kshot.app.schema import (
    ROLES,
    Argument,
    Part,
    Strict,
    describe,
    factory_of,
    kinds,
    learners_of,
    model_of,
    our_factory,
    role_of,
)
from kshot.app.spec import MODELS, Spec
from kshot.app.tracking.tracker import TrackedRun, Tracker
from kshot.data.text.vocabulary import RESERVED, Tokens
from kshot.deciding.decisions import Policy
from kshot.deciding.past import Past
from kshot.deciding.policies import Budget
from kshot.evaluation.target import Target
from kshot.learner import Learner, evaluation_mode
from kshot.models.encoder import Encoder
from kshot.models.ratings import RatingModel
from kshot.objectives import Objective
from kshot.sources.corpus import CorpusPreprocessor
from kshot.sources.image_files import ImagePreprocessor
from kshot.sources.ratings.tasks import RatingTasks
from kshot.sources.text_preprocessor import TextPreprocessor
from kshot.tasks.source import TaskSource
from kshot.training.fit import seeded
from kshot.training.ranks import failing_together
from kshot.training.shards import has_others, shard_frozen
from kshot.types import Split, tree_map

Shapes = dict[str, Any]
"""Shapes of one example, and the objective: {"inputs": [...], "targets": [...], "objective": name}; a learner is built
from these and a run file. Where inputs are a dict, so are their shapes. Inputs of a sort of `SORTS` have its key too:
"counts", the training ratings of each item; "encoder", its name; "symbols", the size of the vocabulary, with
"causal_lm", the folder of its tokenizer, if it is a pretrained one; "ids"; "widths"."""

SORTS = {
    "counts": "ratings",
    "encoder": "texts with features: tokens, or images with an encoder",
    "symbols": "running text (source corpus)",
    "ids": "numbers of symbols",
    "widths": "tables of any number of columns",
}
"""The sorts of inputs besides one tensor of numbers, by the key that they have in `Shapes`."""

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""The kinds of devices that a run file may name."""

ONE_TENSOR = "one tensor of numbers"
TAKES: dict[Any, str] = {
    Supplied.INPUT_SHAPE: ONE_TENSOR,
    Supplied.CHANNELS: ONE_TENSOR,
    Supplied.NUM_ITEMS: SORTS["counts"],
    Supplied.ITEM_COUNTS: SORTS["counts"],
    Supplied.ENCODER: SORTS["encoder"],
    Supplied.NUM_SYMBOLS: SORTS["symbols"],
    Supplied.LANGUAGE_MODEL: SORTS["symbols"],
}
"""The sort of inputs that a model takes, by the arguments of its factory."""

Supplies = Mapping[Any, Callable[..., Any]]
"""What a run supplies to a factory, by marker or type, each computed only if a factory takes it; `Learner` is how the
learners among its options are built, a function of their part."""


def build_source(spec: Spec) -> TaskSource:
    """The task source of a run file."""
    source = _call("source", spec.source, {Supplied.SEED: lambda: spec.task_seed})
    if spec.objective is not None:
        objective, options = _call("objective", spec.objective), spec.objective.model_dump(exclude={"kind"})
        name = f"{spec.objective.kind} {json.dumps(options)}" if options else spec.objective.kind
        source.objective = objective._replace(name=name) if ":" in name else objective
    return source


def shapes_of(source: TaskSource, split: Split = "train") -> Shapes:
    """The shapes of one example of a source's tasks, and their objective; ValueError if that has no name."""
    batch, preprocessor = source.task(split, 0).support, source.preprocessor
    inputs = batch.inputs
    shapes: Shapes = {
        "inputs": tree_map(lambda leaf: list(leaf.shape[1:]), inputs),
        "targets": list(batch.targets.shape[1:]),
    }
    if isinstance(source, RatingTasks):
        shapes["counts"] = list(source.preprocessor.counts)
    elif (isinstance(preprocessor, TextPreprocessor) and preprocessor.features == "tokens") or (
        isinstance(preprocessor, ImagePreprocessor) and preprocessor.features == "pixels" and preprocessor.encoder
    ):
        shapes["encoder"] = preprocessor.encoder
    elif isinstance(preprocessor, CorpusPreprocessor):
        shapes["symbols"] = len(preprocessor.vocabulary)
        if isinstance(preprocessor.vocabulary, Tokens):
            shapes["causal_lm"] = preprocessor.vocabulary.folder
    elif isinstance(inputs, torch.Tensor) and inputs.dtype == torch.int64:
        shapes["ids"] = True
    elif source.varying_width:
        shapes["widths"] = True
    return shapes | {"objective": objectives.name_of(source.objective)}


def build_model(spec: Spec, shapes: Shapes, *, head: bool, learner: Part | None = None) -> nn.Module:
    """The base model, with weights drawn from the run's seed; an empty module if the run file has none.

    Its frozen weights are shared where the run file says so and there are other processes, which build it too.

    Args:
        head: whether to add the layer that gives the task's outputs.
        learner: learner that the model is for; by default that of the run file.

    Raises:
        ValueError: a model that does not fit the inputs, or the learner.
    """
    if spec.model is None:
        if "ids" in shapes:
            raise ValueError(f"these inputs are {SORTS['ids']}, {_models_for(SORTS['ids'])}")
        return nn.Identity()
    learner = learner or spec.learner
    _check_fit(spec.model, learner, shapes, head)
    inputs = shapes["inputs"]
    supplies = {
        Supplied.SEED: lambda: spec.seed,
        Supplied.NUM_OUTPUTS: lambda: shapes["targets"][0 if _of_masks(shapes) else -1] if head else None,
        Supplied.INPUT_SHAPE: lambda: inputs,
        Supplied.CHANNELS: lambda: inputs[0],
        Supplied.IMAGE_SIZE: lambda: None if isinstance(inputs, dict) else inputs[1],
        Supplied.FEATURE_MAPS: lambda: (
            not head and (_of_masks(shapes) or Supplied.MAP_EMBEDDING in _supplied_arguments(learner))
        ),
        Supplied.NUM_SYMBOLS: lambda: shapes["symbols"],
        Supplied.CONTEXT_LENGTH: lambda: inputs[0] * (1 + (_declared(learner, Declared.CONTEXT_WINDOWS) or 0)),
        Supplied.LANGUAGE_MODEL: lambda: shapes["causal_lm"],
        Supplied.NUM_RESERVED: lambda: RESERVED,
        Supplied.ENCODER: lambda: shapes["encoder"],
        Supplied.NUM_ITEMS: lambda: len(shapes["counts"]),
        Supplied.ITEM_COUNTS: lambda: shapes["counts"],
        Supplied.ITEM_FEATURES: lambda: _num_features(shapes, "item_features", "item_factors", "item_mean"),
        Supplied.USER_FEATURES: lambda: _num_features(shapes, "user_features"),
        Supplied.RATING_FEATURES: lambda: _num_features(
            shapes, "item_features", "item_factors", "user_features", "item_mean"
        ),
    }
    shares = spec.shard_frozen and has_others()
    with failing_together() if shares else nullcontext(), seeded(spec.seed):
        built = _call("model", spec.model, supplies)
    return shard_frozen(built) if shares else built


def _of_masks(shapes: Shapes) -> bool:
    """Whether the targets are masks (classes, H, W)."""
    return shapes.get("objective") == "segmentation"


def _check_fit(model: Part, learner: Part, shapes: Shapes, head: bool) -> None:
    """Raise ValueError where a model does not fit the inputs or the learner, with what would."""
    arguments, inputs = _supplied_arguments(model), shapes["inputs"]
    taken = {TAKES[each] for each in arguments if each in TAKES}
    sort = sort_of(shapes)
    names = f" ({', '.join(inputs)})" if isinstance(inputs, dict) else ""
    if taken and sort not in taken:
        raise ValueError(
            f"model {model.kind} does not fit these inputs{names}: it takes {' or '.join(sorted(taken))}, and these "
            f"are {sort}, {_models_for(sort)}"
        )
    if Supplied.CHANNELS in arguments and len(inputs) != 3:
        raise ValueError(f"model {model.kind} takes images (channels, height, width); these inputs are {tuple(inputs)}")
    if Supplied.LANGUAGE_MODEL in arguments and "causal_lm" not in shapes:
        raise ValueError(
            f"model {model.kind} is the one whose tokenizer the source uses: give the source unit: tokens and tokenizer"
        )
    if head:
        return
    if sort == SORTS["symbols"]:
        raise ValueError(
            f"learner {learner.kind} compares features; running text takes one that adapts what the model predicts, "
            "such as maml, meta_sgd or dynamic_evaluation"
        )
    if Supplied.NUM_OUTPUTS in arguments and not arguments[Supplied.NUM_OUTPUTS].optional:
        raise ValueError(
            f"learner {learner.kind} takes features, and model {model.kind} always has a last layer: let its factory "
            "take outputs: NumOutputs | None, which is None for the features"
        )
    gives_no_maps = Supplied.CHANNELS in arguments and Supplied.FEATURE_MAPS not in arguments
    if gives_no_maps and Supplied.MAP_EMBEDDING in _supplied_arguments(learner):
        raise ValueError(
            f"learner {learner.kind} compares feature maps, which model {model.kind} does not give: let its factory "
            "take maps: FeatureMaps, which is true for maps (n, D, H, W) in place of features (n, D)"
        )


def sort_of(shapes: Shapes) -> str:
    """The sort of inputs that one example has."""
    return next((sort for key, sort in SORTS.items() if key in shapes), ONE_TENSOR)


def models_of(sort: str) -> list[str]:
    """The models of kshot that take a sort of inputs."""
    factories = {kind: describe(our_factory("model", kind)) for kind in kinds("model")}
    return [kind for kind, arguments in factories.items() if sort in [TAKES.get(each.supplied) for each in arguments]]


def _models_for(sort: str) -> str:
    """The models of kshot that take a sort of inputs, as the end of a sentence."""
    if models := models_of(sort):
        return f"which model {' or '.join(models)} takes"
    if sort == SORTS["widths"]:
        return "which no model takes: take learner prior_fitted without a model, or give features one number"
    return "which no model of kshot takes: take n-grams by features: words or characters, or a model of your own"


def build_learner(spec: Spec, model: nn.Module, shapes: Shapes, learner: Part | None = None) -> Learner:
    """The learner around a model from `build_model`, or one that is a network of its own; by default the run file's.

    Raises:
        ValueError: a learner that does not fit the inputs, has another objective, or cannot be built.
    """
    learner = learner or spec.learner
    base = None if spec.model is None else model
    features = partial(_features_of, base, shapes, learner.kind)
    supplies: Supplies = {
        **dict.fromkeys((Supplied.MODEL, Supplied.EMBEDDING, Supplied.MAP_EMBEDDING), lambda: base),
        Supplied.FROZEN_EMBEDDING: lambda: model.requires_grad_(False),
        Supplied.TASK_ENCODER: lambda: build_model(
            spec, shapes | {"targets": [_declared(learner, Declared.TASK_DIM)]}, head=True
        ),
        Supplied.FEATURE_COUNT: lambda: prod(features()),
        Supplied.FEATURE_SHAPE: features,
        Supplied.NUM_OUTPUTS: lambda: prod(shapes["targets"]),
        Supplied.USER_FEATURES: lambda: _num_features(shapes, "user_features"),
        Supplied.ITEM_FACTORS: lambda: _num_features(shapes, "item_factors"),
        Supplied.SEED: lambda: spec.seed,
        Objective: lambda: objectives.from_name(shapes["objective"], allow_import=True),
        Learner: partial(_inner_learner, spec, model, shapes, learner),
    }
    # The weights of a head must not repeat those that the base model drew from the same seed.
    alone = all(each.optional for supplied, each in _supplied_arguments(learner).items() if supplied in MODELS)
    with seeded(spec.seed) if alone else seeded(spec.seed, 1):
        built = _call("learner", learner, supplies)
    if ":" in learner.kind and built.objective.name != shapes["objective"]:
        raise ValueError(
            f"learner {learner.kind} has the objective {built.objective.name}, and the run {shapes['objective']}: let "
            "its factory take objective: Objective"
        )
    return built


def _inner_learner(spec: Spec, model: nn.Module, shapes: Shapes, outer: Part, part: Part) -> Learner:
    """A learner among the options of another; it has a model of its own, or the same unless it takes another sort.

    A model that it keeps fixed is copied.
    """
    if (own := model_of(part)) is not None:
        spec = spec.model_copy(update={"model": own})
        return build_learner(spec, build_model(spec, shapes, head=has_head(spec, part), learner=part), shapes, part)
    if has_head(spec, part) != has_head(spec, outer):  # which it can do without: the run file was checked
        spec, model = spec.model_copy(update={"model": None}), nn.Identity()
    elif Supplied.FROZEN_EMBEDDING in _supplied_arguments(part):
        model = copy.deepcopy(model)
    return build_learner(spec, model, shapes, part)


def build_policy(spec: Spec, target: Target, past: Callable[[], Past]) -> Policy | None:
    """The policy of a run file; None for the default. `past` is called only if the policy uses experience."""
    budget = Budget(**spec.budget.model_dump())
    return spec.policy and _call("policy", spec.policy, {Target: lambda: target, Budget: lambda: budget, Past: past})


def build_tracker(part: Part, run: TrackedRun) -> Tracker:
    """A tracker of a run file; raises what its factory does, such as where a server is away."""
    return _call("tracker", part, {TrackedRun: lambda: run})


def _call(role: str, part: Part, supplies: Supplies = EMPTY) -> Any:
    """Call a part's factory; ValueError if it is the user's and cannot be called so, or makes something else."""
    arguments = _arguments(role, part, supplies)
    try:
        made = factory_of(part)(**arguments)
    except TypeError as error:
        if ":" not in part.kind:
            raise
        raise ValueError(f"{role} {part.kind} failed: TypeError: {error}") from error
    result = load(ROLES[role].result)
    if isinstance(result, type) and not isinstance(made, result):
        raise ValueError(f"{role} {part.kind} makes a {type(made).__name__}, and not a {result.__name__}")
    return made


def _arguments(role: str, part: Part, supplies: Supplies) -> dict[str, Any]:
    """The arguments of a part's factory: what the run supplies, and its options."""
    arguments: dict[str, Any] = {}
    for argument in describe(factory_of(part)):
        value: Any = getattr(part, argument.key, None) if argument.key else None
        if argument.supplied in supplies:
            arguments[argument.name] = supplies[argument.supplied]()
        elif argument.supplied is not None:
            raise ValueError(
                f"{role} {part.kind}: its argument {argument.name!r} is annotated as {argument.supplied}, which a "
                f"{role} is not supplied with"
            )
        elif argument.passes_on:
            arguments |= {argument.name: factory_of(value)} | _arguments(role, value, supplies)
        elif argument.key in type(part).model_fields:
            arguments[argument.name] = _built(value, supplies)
    return arguments


def _built(value: Any, supplies: Supplies) -> Any:
    """The value of an option as a factory takes it: a source or learner for a part, plain values for a section."""
    if isinstance(value, Part):
        return supplies[Learner](value) if role_of(value) == "learner" else _call("source", value, supplies)
    if isinstance(value, dict):
        return {name: _built(each, supplies) for name, each in value.items()}
    return value.model_dump() if isinstance(value, Strict) else value


def _supplied_arguments(part: Part) -> dict[Any, Argument]:
    """The arguments of a part's factory, and of learners among its options, by what they are supplied with."""
    found = [
        each
        for one in learners_of(part, of_run_model=True)
        for each in describe(factory_of(one))
        if each.supplied is not None
    ]
    return {each.supplied: each for each in sorted(found, key=lambda each: each.optional, reverse=True)}


def _declared(part: Part, what: Declared) -> Any:
    """The value of the option that says something of a run's models; None if there is none."""
    values = (
        getattr(one, each.key)
        for one in learners_of(part, of_run_model=True)
        for each in describe(factory_of(one))
        if each.declared is what and each.key
    )
    return next(values, None)


def _num_features(shapes: Shapes, *names: str) -> int:
    """The number of features of these names that one example has."""
    return sum(shapes["inputs"].get(name, [0])[-1] for name in names) if isinstance(shapes["inputs"], dict) else 0


def _features_of(model: nn.Module | None, shapes: Shapes, learner: str) -> tuple[int, ...]:
    """The shape of one example's features, or of the input where there is no model."""
    inputs = shapes["inputs"]
    if isinstance(model, Encoder):
        return (model.body.features,)
    if isinstance(model, RatingModel):
        return (model.width,)
    if isinstance(inputs, dict):
        raise ValueError(
            f"learner {learner} takes inputs of one tensor; these are {', '.join(inputs)}: give the run file a model "
            "that makes one of them, such as model: {kind: factorisation}"
        )
    if model is None:
        return tuple(inputs)
    like = next(model.parameters(), torch.empty(0))
    with evaluation_mode(model):  # measuring must not move BatchNorm's running statistics
        return tuple(model(torch.zeros(1, *inputs, dtype=like.dtype, device=like.device)).shape[1:])


def has_head(spec: Spec, learner: Part | None = None) -> bool:
    """Whether a learner, by default the run's, uses the model's last layer, and so has a fixed number of ways."""
    return spec.model is not None and Supplied.MODEL in _supplied_arguments(learner or spec.learner)


def device_of(spec: Spec) -> torch.device:
    """The device of a run file; "auto" is the accelerator if there is one. ValueError if it is not available."""
    if spec.device == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(spec.device)
        if device.type not in DEVICES or (device.type == "cpu" and device.index):
            raise ValueError(f"device {spec.device!r} does not train: take auto, {', '.join(DEVICES)}, or cuda:1")
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {spec.device!r} is not available: {str(error).splitlines()[0]}") from None
    return device
