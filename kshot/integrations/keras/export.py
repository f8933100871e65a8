"""What a learner has learned, as files that Keras reads on any backend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot.files import whole_file, write_json
from kshot.inner.per_parameter import LearnedRate
from kshot.inner.rules import SGD
from kshot.integrations.keras.backend import keras
from kshot.integrations.keras.module import KerasModule
from kshot.integrations.keras.refused import layers_of
from kshot.learner import Learner
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.types import Params, Tree

SUFFIXES = (".keras", ".weights.h5")


def export_keras(learner: Learner, file: Path | str, *, state: Tree | None = None) -> Path:
    r"""Write the Keras model of a learner to a file, and how it adapts to a JSON file beside it.

    Keras reads the file on any backend: `keras.models.load_model("x.keras")`, or `model.load_weights("x.weights.h5")`
    for a model that the reader builds. The JSON file `x.json` holds under "inner" what a loop of inner steps needs, for

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k): $$

    "steps", "momentum", "nesterov", "dampening", "weight_decay", "batchnorm", "objective", and under "weights", for
    each weight that adapts, its "number" in `model.weights`, its name, its shape and its rate: "inner_lr", a number or
    nested lists of that shape, or "inner_lr_of_steps", a list of such rates, of which later steps take the last.
    "inner" is null for learners that take no inner steps.

    Args:
        learner: a learner with one module of `as_module`; its trained parameters are the weights of the model, and
            those of `meta_sgd` also the rates.
        file: path that ends in .keras (architecture and weights) or .weights.h5 (weights); a file there is replaced.
        state: a state of a learner that takes inner steps; the weights adapted to that task are then written instead,
            and "inner" is null. Statistics of BatchNorm of the support set become the moving ones, by which Keras
            predicts.

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: another suffix, or something that the files cannot hold, such as inner steps of Adam.
        OSError: a file cannot be written.

    Example:
        >>> from kshot.integrations.keras import as_module, export_keras
        >>> import json, keras, tempfile
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
        >>> learner = kshot.maml(as_module(model), inner_lr=0.1, steps=5)
        >>> path = export_keras(learner, tempfile.mkdtemp() + "/classifier.keras")
        >>> [weight["inner_lr"] for weight in json.loads(path.read_text())["inner"]["weights"]]
        [0.1, 0.1]
    """
    path, suffix = Path(file), next((suffix for suffix in SUFFIXES if str(file).endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"the name of a file for Keras must end in {' or '.join(SUFFIXES)}, got {path.name!r}")
    modules = [part for part in learner.modules() if isinstance(part, KerasModule)]
    if len(modules) != 1:
        raise ValueError(f"export_keras takes a learner with one module of as_module, this one has {len(modules)}")
    (module,) = modules
    model, values = module.keras_model, {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if suffix == ".keras" and any(isinstance(layer, keras.layers.Lambda) for layer in layers_of(model)):
        raise ValueError(
            f"{path.name} would hold the code of a Lambda layer, which Keras runs only with safe_mode=False: write a "
            "file that ends in .weights.h5, or use a layer in place of the Lambda"
        )
    if state is None:
        inner = _inner_settings(learner, module)
    else:
        inner, values = None, values | _adapted(learner, module, state)
    with whole_file(path) as temporary, _named(temporary, suffix) as named, _values(module, values):
        _save(model, named, suffix)
    about = path.with_name(path.name.removesuffix(suffix) + ".json")
    write_json(about, {"format": 1, "file": path.name, "learner": type(learner).__name__, "inner": inner})
    return about


def _inner_settings(learner: Learner, module: KerasModule) -> dict[str, Any] | None:
    """The settings of the inner steps; None for a learner without any. ValueError if the file would miss something."""
    inner, rates = None, {}
    if isinstance(learner, GradientLearner):
        rule = _sgd(learner, module)
        numbers = {id(variable): number for number, variable in enumerate(module.keras_model.weights)}
        places = {name: (numbers.get(id(v)), list(v.shape)) for v, name in module.structure.variables}
        inner = {
            "steps": learner.solver.steps,
            **{name: _number(getattr(rule, name)) for name in ("momentum", "dampening", "weight_decay")},
            "nesterov": rule.nesterov,
            "batchnorm": learner.function.batchnorm if module.structure.norms else None,
            "objective": learner.objective.name,
            "weights": [
                {"number": places[name][0], "name": name, "shape": places[name][1], **_rate(rule.inner_lr, name)}
                for name in learner.adaptable_params()
            ],
        }
        rates = dict(rule.named_parameters())
    held = {id(parameter) for parameter in (*module.parameters(), *rates.values())}
    if other := [name for name, p in learner.trained_parameters().items() if id(p) not in held]:
        raise ValueError(
            f"the learner has trained the parameter {other[0]!r}, which is no weight of the Keras model, and which the "
            "files cannot hold"
        )
    return inner


def _sgd(learner: GradientLearner, module: KerasModule) -> SGD:
    rule = learner.solver.rule
    parts = {"head_init": learner.head_init, "per_step": learner.per_step, "minibatch": learner.minibatch}
    more = [name for name, part in parts.items() if part is not None]
    if type(rule) is not SGD or rule.maximize or more or learner.model is not module:
        what = f"with {more[0]}" if more else f"by {type(rule).__name__}"
        raise ValueError(
            f"the file holds inner steps of SGD on the weights of the Keras model, and this learner adapts {what}: "
            "export the model adapted to a task by state="
        )
    return rule


def _rate(rate: Any, name: str) -> dict[str, Any]:
    if not isinstance(rate, LearnedRate):
        return {"inner_lr": _number(rate(name, 0) if callable(rate) else rate)}
    values = rate.rates[name].detach().tolist()
    return {"inner_lr" if rate.steps is None else "inner_lr_of_steps": values}


def _number(value: Any) -> Any:
    return value.detach().tolist() if isinstance(value, Tensor) else value


def _adapted(learner: Learner, module: KerasModule, state: Tree) -> Params:
    """The weights of a task, by their names in the module."""
    if (
        not isinstance(learner, GradientLearner)
        or learner.model is not module
        or "support" in state.get("statistics", {})
    ):
        raise ValueError("only a state of inner steps that change weights of the Keras model can be exported")
    if (present := state.get("present")) is not None and not bool((torch.as_tensor(present) > 0).all()):
        raise ValueError("the support set of the state lacks some classes, which the file cannot hold")
    if learner.transductive:
        raise ValueError(
            "predictions by batchnorm='query' depend on the other queries, and those of the file would not"
        )
    moments = {"running_mean": "mean", "running_var": "var"}
    statistics = {
        f"{layer}.{key}": values[moment]
        for layer, values in state.get("statistics", {}).items()
        for key, moment in moments.items()
    }
    names = {name for _, name in module.structure.variables}
    if unknown := sorted(set(statistics) - names):
        raise ValueError(f"the file cannot hold {unknown[0]!r}, since that BatchNormalization is called more than once")
    return {**state["params"], **state.get("buffers", {}), **statistics}


def _save(model: Any, file: Path, suffix: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, which Keras causes
        if suffix == ".keras":
            model.save(file, include_optimizer=False)
        else:
            model.save_weights(file)


@contextmanager
def _values(module: KerasModule, values: Params) -> Iterator[None]:
    """A context in which the weights of the Keras model have other values."""
    own = [(variable, variable.value.detach().clone()) for variable, _ in module.structure.variables]
    try:
        for variable, name in module.structure.variables:
            value = values[name].detach().to(variable.value.device)
            if not torch.equal(variable.value, value):
                variable.assign(value)
        yield
    finally:
        for variable, value in own:
            if not torch.equal(variable.value, value):
                variable.assign(value)


@contextmanager
def _named(temporary: Path, suffix: str) -> Iterator[Path]:
    """A path with the suffix that Keras insists on; what is written there is moved to `temporary`."""
    named = temporary.with_name(temporary.name + suffix)
    try:
        yield named
        named.replace(temporary)
    finally:
        named.unlink(missing_ok=True)
