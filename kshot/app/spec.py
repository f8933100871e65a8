"""The run file: what a run is made of, as one checked model. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Le, Len
from pydantic import BeforeValidator, Field, PlainValidator, ValidationError, model_validator

from kshot.annotations import MOST, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Supplied
from kshot.app.importing import beside, make_importable, nearest
from kshot.app.schema import (
    Part,
    Strict,
    check_part,
    describe,
    factory_of,
    learners_of,
    model_of,
    part,
    problem,
    section,
)
from kshot.data.tables.open import SUFFIXES, suffix_of
from kshot.data.text_files import read_text
from kshot.limits import limits
from kshot.yaml_files import Parsed, parse_yaml

AtLeastTwo = Annotated[int, Ge(2), Le(MOST)]
BASELINES: dict[str, str] = {
    "scratch": "the same model, trained on the support set alone from random weights",
    "fine_tune": "the model, pretrained on the training split, fine-tuned on the support set",
    "pretrained": "the model, pretrained on the training split, without adaptation",
    "pretrained_centroid": "nearest class mean in the features of the model, pretrained on the training split",
    "centroid": "nearest class mean of the raw inputs, or of the features of a pretrained encoder",
    "support_mean": "the mean of the support targets for any input",
    "shrunken_mean": "the mean of the training rows, moved to that of the support by the ratio of the variances",
    "pooled_ridge": "ridge regression of all training rows",
    "pooled_logistic": "logistic regression of all training rows",
    "group_ridge": "ridge regression of the support set alone",
    "group_logistic": "logistic regression of the support set alone",
    "shrunken_ridge": "ridge regression of the support set, shrunken to the coefficients of all training rows",
    "shrunken_logistic": "logistic regression of the support set, shrunken to that of all training rows",
    "mixed_model": "a mixed model: shared coefficients, with intercepts and slopes that vary by group",
    "mixed_model_ar1": "the same, plus a share of the residual of the latest support row",
    "pooled_boosting": "histogram boosting of all training rows, with statistics of the support set as features",
    "pooled_boosting_residual": "histogram boosting of all training rows, and the support's residuals by a mixed model",
    "target_encoded_boosting": "the same, with categories encoded by the target",
    "random_forest": "scikit-learn's random forest, fitted to the support set",
    "histogram_boosting": "scikit-learn's histogram boosting, fitted to the support set",
    "seasonal_naive": "the values one season before",
    "last_value": "the last value",
    "drift": "the line through the first and the last value",
    "ets": "exponential smoothing, with trend and season chosen by AICc",
    "theta": "the Theta method, seasonally adjusted",
    "global_ridge": "ridge regression on lags, over all training series",
    "global_boosting": "histogram boosting on lags, over all training series",
    "pretrained_probe": "logistic regression on the features of the model, pretrained on the training split",
    "class_mean_cosine": "the nearest class mean of the features by the cosine",
    "logistic_regression": "scikit-learn's logistic regression, with C tuned",
    "ridge": "ridge regression or classification, with a tuned penalty",
    "knn": "the nearest neighbours, by the cosine of features or in standardised columns",
    "zero_shot": "the class whose name has the features of the largest cosine, without the support set",
    "class_mean_and_name": "class means of the features, shrunken to the features of the class names",
    "supervised_logistic": "logistic regression of all training examples, where all splits have the same classes",
    "supervised_forest": "a random forest of all training examples, where all splits have the same classes",
    "all_background": "background everywhere",
    "mean_mask": "the mean of the support set's masks, pixel by pixel, whatever the image",
    "pixel_logistic": "logistic regression on colours and edges of single pixels of the support images",
    "pixel_forest": "a random forest on colours and edges of single pixels, as in ilastik",
    "prototype": "the nearest mean of objects and background in the frozen feature maps, by the cosine",
    "contrast_then_probe": "logistic regression on features tuned by plain contrast on the training classes",
    "without_pretraining": "a network that saw the training split alone, without the pretrained encoder",
    "n_grams": "n-grams with back-off, of the training texts and the support set",
    "n_grams_causal": "the same, which also count what they have read of the query, as a compressor does",
    "gaussian_process": "a Gaussian process whose kernel is fitted to the training split",
    "global_mean": "the mean of the training ratings",
    "user_mean": "the user's mean, shrunk towards the global mean",
    "item_mean": "the item's mean in training, shrunk towards the global mean",
    "bias": "the global mean plus shrunk offsets of user and item",
    "popularity": "the item's number of ratings or clicks in training",
    "item_knn": "offsets plus ratings of similar items",
    "item_cosine": "the items that the users of the clicked items clicked too, by the cosine",
    "implicit_als": "factors by alternating least squares on clicks, with the user's fitted to the support set",
    "ease": "the linear autoencoder EASE, fitted to the training clicks",
    "matrix_factorisation": "offsets plus factors, with the user's fitted to the support set",
}
"""The baselines by name, and their descriptions."""

NEED_PRETRAINING = {"fine_tune", "pretrained", "pretrained_centroid", "pretrained_probe", "contrast_then_probe"}
NEED_A_MODEL = {"scratch", *NEED_PRETRAINING}

MODELS = {Supplied.MODEL, Supplied.EMBEDDING, Supplied.FROZEN_EMBEDDING, Supplied.MAP_EMBEDDING}
"""What a learner's argument is supplied with where that is the model of the run file."""


SEARCH = "search"
"""The section of a run file that only `kshot sweep` reads."""


class EvaluateSpec(Strict):
    """`shots` are those of the chart over shots, which uses the first `num_shots_tasks` test tasks for each. With
    `folds`, there is a run for each fold of the classes or groups, and each is tested once."""

    num_val_tasks: AtLeastTwo = 100
    num_test_tasks: AtLeastTwo = 600
    shots: list[PositiveInt] = Field([1, 2, 5, 10, 20])
    num_shots_tasks: AtLeastTwo = 100
    folds: Annotated[int, Ge(3), Le(MOST)] | None = None


def _baseline(value: Any) -> str | Part:
    if not isinstance(value, str) or ":" in value:
        return check_part("baseline", value)
    if value not in BASELINES:
        raise problem(f"is no baseline: {value!r}{nearest(value, BASELINES)}")
    return value


class BaselinesSpec(Strict):
    """`rule` is that of fine-tuning; `inner_lrs`, and several `steps`, are tuned on validation tasks for each baseline.
    The default `names` are those that suit the tasks. Pretrained ones train for `budget` times the time that the
    learner took, if that is longer than the run file's `pretrain`. All test tasks are scored unless `num_test_tasks` is
    given. Beside a pretrained encoder of images, a network of random weights is trained for `scratch_seconds`, 0 for
    none."""

    names: list[Annotated[Any, PlainValidator(_baseline)]] | None = None
    steps: PositiveInt | Annotated[list[PositiveInt], Len(1)] = 50
    rule: Literal["sgd", "adam"] = "sgd"
    inner_lrs: list[PositiveFloat] = Field([0.01, 0.1], min_length=1)
    budget: NonNegativeFloat = 1.0
    scratch_seconds: NonNegativeFloat = 60.0
    num_val_tasks: AtLeastTwo = 20
    num_test_tasks: AtLeastTwo | None = None


BUDGET = section("kshot.deciding.policies:Budget")
PRETRAIN = section("kshot.training.pretrain:pretrain", "model", "source", "head", "seed")
TRAIN = section(
    "kshot.deciding.loop:run_until", "learner", "source", "target", "num_val_tasks", "seed", "folder", "spent_seconds"
)
REJECT = section("kshot.evaluation.rejection:rejection", "learner", "source", "threshold", "split", "num_tasks")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value is None else [value]


class Spec(Strict):
    """A run file. docs/run-files.md documents its keys; those of parts and sections are arguments of factories."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    source: Annotated[Any, part("source")]
    objective: Annotated[Any, part("objective")] | None = None
    model: Annotated[Any, part("model")] | None = None
    learner: Annotated[Any, part("learner")]
    pretrain: Annotated[Any, PRETRAIN] | None = None
    train: Annotated[Any, TRAIN] = Field(default_factory=dict, validate_default=True)
    target: str
    budget: Annotated[Any, BUDGET] = Field(default_factory=dict, validate_default=True)
    policy: Annotated[Any, part("policy")] | None = None
    evaluate: EvaluateSpec = EvaluateSpec()
    baselines: BaselinesSpec = BaselinesSpec()
    reject: Annotated[Any, REJECT] | None = None
    seed: NonNegativeInt = 0
    task_seed: NonNegativeInt = 0
    track: Annotated[list[Annotated[Any, part("tracker")]], BeforeValidator(_as_list)] = Field([])
    device: str = "auto"
    shard_frozen: bool = False

    @model_validator(mode="after")
    def _has_a_model_where_one_is_needed(self) -> Spec:
        _check_models(self.learner, self.model)
        for each in learners_of(self.learner):
            if (own := model_of(each)) is not None:
                _check_models(each, own)
        if self.model is None and self.shard_frozen:
            raise ValueError(f"shard_frozen shares weights of a model, and learner {self.learner.kind} has none")
        needing = NEED_A_MODEL & {name for name in self.baselines.names or [] if isinstance(name, str)}
        if self.model is None and (self.pretrain or needing):
            needs = "pretrain" if self.pretrain else f"baseline {min(needing)}"
            raise ValueError(f"{needs} needs a model, and learner {self.learner.kind} has none")
        return self

    def to_yaml(self) -> str:
        """The whole file, defaults included."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def _check_models(learner: Part, model: Part | None) -> None:
    """Raise ValueError unless a learner, and those among its options that share its model, take that model."""
    parts = list(learners_of(learner, of_run_model=True))
    models = [each for part in parts for each in describe(factory_of(part)) if each.supplied in MODELS]
    if model is not None and not models:
        raise ValueError(f"learner {learner.kind} is a network of its own: leave out 'model'")
    if model is None and not all(each.optional for each in models):
        raise ValueError(f"learner {learner.kind} adapts a model: the key 'model' is missing")
    if len({each.supplied is Supplied.MODEL for each in models if not each.optional}) > 1:
        raise ValueError(
            f"learner {learner.kind}: {', '.join(part.kind for part in parts[1:])} do not go together, since "
            "some take the model with its last layer, as maml does, and some without it, as protonet does"
        )


def recipes() -> dict[str, str]:
    """The recipes that come with kshot: name to text."""
    folder = resources.files("kshot.app") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text() for f in files}


def read_run_file(name: str) -> tuple[str, str, Path | None] | None:
    """The text of a recipe or a file, its name in errors, and the folder of a file; None if there is none.

    Raises:
        ValueError: it is a table.
    """
    known, path = recipes(), Path(name)
    if name in known:
        return known[name], f"recipe {name}", None
    if suffix_of(path) in SUFFIXES.keys() - {".json", ".txt"} and path.exists():  # YAML may have these
        raise ValueError(
            f"{name} is a table, and no run file: `kshot auto {name}` takes tables; a run file names one by "
            f"source: {{kind: table, path: {path.name}}}"
        )
    return (read_text(path, most=limits().yaml_bytes), str(path), path.parent) if path.exists() else None


def load_spec(name: str, overrides: list[str] | None = None) -> Spec:
    """Read a recipe by its name or a run file by its path, with `PATH=VALUE` overrides.

    Raises:
        ValueError: an unknown recipe or file, invalid YAML, an unknown key (the message gives its line and the nearest
            known one), a value out of bounds, a factory that cannot be imported.

    Example:
        >>> load_spec("sinusoid", ["learner.steps=2"]).learner.steps
        2
    """
    if found := read_run_file(name):
        text, where, folder = found
        return parse_spec(text, where, overrides, folder)
    path, known = Path(name), recipes()
    if path.suffix in (".yaml", ".yml") or path.parent != Path("."):
        raise ValueError(f"there is no run file {name}")
    raise ValueError(f"there is no recipe {name!r}{nearest(name, known)}; `kshot recipes` lists them")


def parse_spec(
    text: str,
    where: str,
    overrides: Sequence[str] | None = None,
    folder: Path | None = None,
    *,
    without_search: bool = False,
) -> Spec:
    """Check the text of a run file.

    Args:
        text, where: YAML, and the name of the file in errors.
        overrides: `PATH=VALUE`, each set in the file.
        folder: where modules of `package.module:factory` are looked for, besides the working directory.
        without_search: whether to leave out the section `search`, which only `kshot sweep` reads.

    Raises ValueError as `load_spec`.
    """
    data, lines = parse_values(text, where, overrides, folder)
    if data.pop(SEARCH, None) is not None and not without_search:
        raise ValueError(f"{where}: the section {SEARCH!r} is for `kshot sweep`: run that, or delete the section")
    make_importable(*([folder] if folder else []), Path.cwd())
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(entry, data, lines, where) for entry in error.errors())) from None


def parse_values(text: str, where: str, overrides: Sequence[str] | None = None, folder: Path | None = None) -> Parsed:
    """The values of a run file with overrides, see `parse_spec`, and their lines, 0 for those of overrides."""
    data, lines = parse_yaml(text, where)
    if not isinstance(data, dict):
        raise ValueError(f"{where}: a run file holds keys and values, such as 'name: my-run'; this holds none")
    if folder is not None:
        data |= {"source": beside(folder, data.get("source"))} if "source" in data else {}
    for override in overrides or []:
        overridden = _override(data, override)
        lines = {path: line for path, line in lines.items() if path[: len(overridden)] != overridden}
        lines[overridden] = 0
    return Parsed(data, lines)


def _override(data: dict[str, Any], text: str) -> tuple[str, ...]:
    """Set the value of a `PATH=VALUE`, and return the path."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"--set takes PATH=VALUE, as in train.outer_lr=0.001; got {text!r}")
    node = data
    for key in keys[:-1]:
        if not isinstance(node.get(key) or {}, dict):
            raise ValueError(f"--set {text}: {key!r} holds a value, not keys")
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
    node[keys[-1]] = parse_yaml(value, f"--set {path}").values
    return tuple(keys)


def _explain(entry: Any, data: Any, lines: dict[tuple[str | int, ...], int], where: str) -> str:
    """An error of pydantic as a sentence with the line and the key."""
    path = _path_in(data, entry["loc"]) if entry["type"] != "missing" else entry["loc"]
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    place = where if line is None else f"{where}, line {line}" if line else "--set"
    key = ".".join(map(str, path)) or "the file"
    if entry["type"] == "unknown_key":
        return f"{place}: unknown key {key!r}{entry['msg']}"
    if entry["type"] == "missing":
        return f"{place}: the key {key!r} is missing"
    if entry["type"] == "part":
        return f"{place}: {key} {entry['msg']}"
    message = entry["msg"].removeprefix("Value error, ")
    got = f", got {entry['input']!r}" if path else ""  # what is about the file as a whole does not repeat it
    return f"{place}: {key}: {message[0].lower()}{message[1:]}{got}"


def _path_in(data: Any, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The part of a pydantic location that is a path in the file: without the names of a union's members."""
    path: tuple[str | int, ...] = ()
    for key in location:
        try:
            data = data[key]
        except (LookupError, TypeError):
            continue
        path = (*path, key)
    return path
