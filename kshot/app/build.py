"""From a run file to objects: source, model, learner, baselines."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import nn

from kshot import learners, models, objectives, sources
from kshot.app.spec import (
    AlpacaSpec,
    CausalLmSpec,
    CnapsSpec,
    Conv4Spec,
    EncoderSpec,
    EpisodesSpec,
    FromHfSpec,
    LanguageModelSpec,
    MixtureSpec,
    MlpSpec,
    NeuralProcessSpec,
    OneSourceSpec,
    PldaSpec,
    PriorFittedSpec,
    RatingMlpSpec,
    RatingModelSpec,
    Spec,
    TwoTowerSpec,
)
from kshot.data.text.tokenizer import RESERVED, Tokens
from kshot.learner import Learner
from kshot.models.encoder import Encoder
from kshot.sources.corpus import CorpusPreprocessor
from kshot.sources.ratings.source import RatingTasks
from kshot.sources.text import TextPreprocessor
from kshot.tasks.source import TaskSource
from kshot.training.fit import seeded

Shapes = dict[str, Any]
"""Shapes of one example, and what is asked: {"inputs": [...], "targets": [...], "objective": name}; with a spec, all
that a learner is built from. Where inputs are a dict, so are their shapes; "counts" has the training ratings of each
item, "symbols" counts those of a vocabulary."""

OF_MAPS = ("relation_net", "frn")
"""Learners that compare feature maps where the model makes them, rather than vectors."""


def build_source(spec: Spec) -> TaskSource:
    """The task source that a run file names."""
    return _source(spec.source, spec.task_seed)


def with_shots(spec: Spec, shots: int) -> Spec:
    """A run file whose tasks have so many shots, each class the same; frozen episodes stay as they are."""
    return spec.model_copy(update={"source": _with_shots(spec.source, shots)})


def _with_shots(named: OneSourceSpec | MixtureSpec, shots: int) -> OneSourceSpec | MixtureSpec:
    if isinstance(named, EpisodesSpec):
        return named
    if isinstance(named, FromHfSpec):
        return named.model_copy(update={"tasks": _with_shots(named.tasks, shots)})
    if isinstance(named, MixtureSpec):
        sources = {name: _with_shots(inner, shots) for name, inner in named.sources.items()}
        return named.model_copy(update={"sources": sources})
    even = {"imbalance": None} if "imbalance" in type(named).model_fields else {}
    return named.model_copy(update={"shots": shots} | even)


def _source(named: OneSourceSpec | MixtureSpec, seed: int) -> TaskSource:
    options = named.model_dump(exclude={"kind"})
    if isinstance(named, EpisodesSpec):
        return sources.episodes(**options)
    if isinstance(named, FromHfSpec):
        make, inner = getattr(sources, named.tasks.kind), named.tasks.model_dump(exclude={"kind", "path"})
        return sources.from_hf(named.path, make, parts=named.parts, columns=named.columns, **inner, seed=seed)
    if isinstance(named, MixtureSpec):
        options["sources"] = {name: _source(inner, seed) for name, inner in named.sources.items()}
    return getattr(sources, named.kind)(**options, seed=seed)


def shapes_of(source: TaskSource) -> Shapes:
    """The shapes of one example of a source's tasks, and what they ask.

    Raises:
        ValueError: inputs that no model of a run file takes.
    """
    batch = source.task("train", 0).support
    text = source.preprocessor if isinstance(source.preprocessor, CorpusPreprocessor) else None
    if isinstance(batch.inputs, torch.Tensor) and batch.inputs.dtype == torch.int64 and text is None:
        raise ValueError(
            "these tasks give the numbers of symbols, which no model of a run file reads: take n-grams of texts by "
            "features: words or characters, or give kshot a model with an embedding in Python, see docs/your-data.md"
        )
    inputs = (
        {name: list(leaf.shape[1:]) for name, leaf in batch.inputs.items()} if isinstance(batch.inputs, dict) else None
    )
    shapes: Shapes = {"inputs": inputs or list(batch.inputs.shape[1:]), "targets": list(batch.targets.shape[1:])}
    if isinstance(source, RatingTasks):
        shapes["counts"] = list(source.preprocessor.counts)
    if isinstance(source.preprocessor, TextPreprocessor) and source.preprocessor.features == "tokens":
        shapes["encoder"] = source.preprocessor.encoder
    if text is not None:
        shapes["symbols"] = len(text.vocabulary)
        if isinstance(text.vocabulary, Tokens):
            shapes["causal_lm"] = text.vocabulary.folder
    return shapes | {"objective": objectives.name_of(source.objective)}


def build_model(spec: Spec, shapes: Shapes, *, head: bool) -> nn.Module:
    """The base model, its weights drawn from the run's seed; `head` adds the layer that gives the task's outputs.

    A learner that is a network of its own has none: an empty module.
    """
    if spec.model is None:
        return nn.Identity()
    inputs, outputs = shapes["inputs"], shapes["targets"][-1]
    fits = isinstance(spec.model, EncoderSpec) == ("encoder" in shapes)
    if not fits or isinstance(spec.model, RatingModelSpec) != ("counts" in shapes):
        kind, given = spec.model.kind, ", ".join(inputs) if isinstance(inputs, dict) else "one tensor"
        raise ValueError(
            f"model {kind} does not fit these inputs ({given}): ratings, and they alone, take model rating_mlp, "
            "two_tower or factorisation, texts with features: tokens, and they alone, take model encoder"
        )
    if isinstance(spec.model, LanguageModelSpec | CausalLmSpec) != ("symbols" in shapes):
        raise ValueError(
            f"model {spec.model.kind} does not fit these tasks: running text (source corpus), and it alone, takes "
            "model language_model, or with unit: tokens causal_lm"
        )
    if isinstance(spec.model, CausalLmSpec) and "causal_lm" not in shapes:
        raise ValueError(
            "model causal_lm is the one whose tokenizer the source names: give it unit: tokens, tokenizer: folder"
        )
    if isinstance(spec.model, LanguageModelSpec | CausalLmSpec) and not head:
        raise ValueError(
            f"learner {spec.learner.kind} compares features; running text takes one that adapts what the model "
            "predicts, such as maml, meta_sgd or dynamic_evaluation"
        )
    with seeded(spec.seed):
        if isinstance(spec.model, EncoderSpec):
            options = spec.model.model_dump(exclude={"kind"})
            return models.encoder(shapes["encoder"], outputs if head else None, **options)
        if isinstance(spec.model, CausalLmSpec):
            return models.causal_lm(shapes["causal_lm"], rank=spec.model.rank, reserved=RESERVED)
        if isinstance(spec.model, LanguageModelSpec):
            options = spec.model.model_dump(exclude={"kind", "body"})
            read = inputs[0] * (1 + getattr(spec.learner, "context_windows", 0))
            return models.language_model(shapes["symbols"], spec.model.body, context_length=read, **options)
        if isinstance(spec.model, RatingModelSpec):
            of_items, of_users = (inputs.get(f"{side}_features", [0])[-1] for side in ("item", "user"))
            of_items += inputs.get("item_mean", [0])[-1]
            options = spec.model.model_dump(exclude={"kind"}) | {"outputs": outputs if head else None}
            counts = shapes["counts"]
            if isinstance(spec.model, TwoTowerSpec):
                return models.two_tower(len(counts), of_items, of_users, **options)
            if isinstance(spec.model, RatingMlpSpec):
                return models.rating_mlp(len(counts), of_items + of_users, **options)
            return models.factorisation(counts, of_items + of_users, **options)
        if not isinstance(spec.model, MlpSpec):
            if len(inputs) != 3:
                raise ValueError(
                    f"model {spec.model.kind} takes images (channels, height, width); these inputs are {tuple(inputs)}"
                )
            options = spec.model.model_dump(exclude={"kind"})
            if isinstance(spec.model, Conv4Spec):
                options["size"] = inputs[1]
            if not head:
                options["maps"] = spec.learner.kind in OF_MAPS
            return getattr(models, spec.model.kind)(inputs[0], outputs if head else None, **options)
        model = models.mlp(prod(inputs), outputs if head else None, spec.model.hidden)
        return (
            model if len(inputs) == 1 else nn.Sequential(OrderedDict(flat=nn.Flatten(), **dict(model.named_children())))
        )


def build_learner(spec: Spec, model: nn.Module, shapes: Shapes) -> Learner:
    """The learner around a base model, or one that is a network of its own."""
    objective = objectives.from_name(shapes["objective"], allow_import=True)
    options = spec.learner.model_dump(exclude={"kind"}) | {"objective": objective}
    factory = _factory(spec)
    if isinstance(spec.learner, CnapsSpec):
        encoder = build_model(spec, shapes | {"targets": [spec.learner.task_dim]}, head=True)
        return factory(model, encoder, **options)
    if isinstance(spec.learner, PriorFittedSpec):  # which takes tables of any width
        with seeded(spec.seed):
            return factory(**options)
    if isinstance(spec.learner, NeuralProcessSpec):
        if spec.model is None and isinstance(shapes["inputs"], dict):
            raise ValueError(
                f"learner {spec.learner.kind} takes inputs of one tensor; these are {', '.join(shapes['inputs'])}: "
                "name a model that makes one of them, such as model: {kind: factorisation}"
            )
        whole = shapes["inputs"] if spec.model is None else _features_of(model, shapes)
        options |= {"embedding": None if spec.model is None else model}
        with seeded(spec.seed):
            return factory(prod(whole), prod(shapes["targets"]), **options)
    if "features" in inspect.signature(factory).parameters:
        shape = _features_of(model, shapes)
        options["features"] = tuple(shape) if spec.learner.kind in OF_MAPS else prod(shape)
    if isinstance(spec.learner, AlpacaSpec) and isinstance(shapes["inputs"], dict):
        options["user_features"] = shapes["inputs"].get("user_features", [0])[-1]
    if isinstance(spec.learner, PldaSpec):
        model.requires_grad_(False)  # what is measured of features holds for these alone
    return factory(model, **options)


def _features_of(model: nn.Module, shapes: Shapes) -> torch.Size:
    """The shape of what a model makes of one example."""
    if isinstance(model, Encoder):
        return torch.Size([model.body.features])
    if isinstance(shapes["inputs"], dict):
        if isinstance(model, models.RatingModel):
            return torch.Size([model.width])
        raise ValueError(f"this learner takes inputs of one tensor; these are {', '.join(shapes['inputs'])}")
    like = next(model.parameters(), torch.empty(0))
    was_training = model.training
    model.eval()  # measuring must not move BatchNorm's running statistics
    with torch.no_grad():
        features = model(torch.zeros(1, *shapes["inputs"], dtype=like.dtype, device=like.device))
    model.train(was_training)
    return features.shape[1:]


def has_head(spec: Spec) -> bool:
    """Whether the run's learner predicts through the model's own last layer, and so has a fixed number of ways."""
    return spec.model is not None and "embedding" not in inspect.signature(_factory(spec)).parameters


def _factory(spec: Spec) -> Callable[..., Learner]:
    return getattr(learners, spec.learner.kind)


def device_of(spec: Spec) -> torch.device:
    """The device that the run file names; "auto" is the accelerator if there is one.

    Raises:
        ValueError: a device that torch does not know or this machine lacks.
    """
    if spec.device == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(spec.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {spec.device!r} is not to be had here: {str(error).splitlines()[0]}") from None
    return device
