"""The run file: what a run is made of, as one checked model. Imports neither torch nor anything else that is slow."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SinusoidsSpec(_Strict):
    kind: Literal["sinusoids"]
    shots: int = Field(10, ge=1)
    queries: int = Field(10, ge=1)
    noise: float = Field(0.0, ge=0)
    target_type: Literal["mean", "spread"] = "mean"


def _whole_or_range(value: Any) -> int | list[int]:
    ends = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(type(end) is int and end >= 1 for end in ends) or ends != sorted(ends):
        raise ValueError("must be a whole number of at least 1, or a rising range of two such as [1, 5]")
    return value


SizeSpec = Annotated[int | list[int], PlainValidator(_whole_or_range)]


PositiveRange = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class GaussianProcessesSpec(_Strict):
    kind: Literal["gaussian_processes"]
    kernel: Literal["rbf", "matern52", "periodic"] = "rbf"
    length_scale: PositiveRange = [0.2, 1.0]
    period: PositiveRange = [1.0, 2.0]
    noise: float = Field(0.05, gt=0)
    shots: SizeSpec = [3, 30]
    queries: int = Field(50, ge=1)


class TabularPriorsSpec(_Strict):
    kind: Literal["tabular_priors"]
    target_type: Literal["classification", "regression"] = "classification"
    rows: SizeSpec = [10, 100]
    features: SizeSpec = [2, 32]
    classes: SizeSpec = [2, 10]
    queries: int = Field(32, ge=1)


class _ClassesSpec(_Strict):
    ways: SizeSpec = 5
    shots: SizeSpec = 1
    queries: SizeSpec = 15
    train_ways: SizeSpec | None = None
    train_queries: SizeSpec | None = None
    imbalance: Literal["random", "linear", "step"] | None = None
    label_noise: float = Field(0.0, ge=0, lt=1)


class GlyphsSpec(_ClassesSpec):
    kind: Literal["glyphs"]


class AugmentSpec(_Strict):
    flip: bool = False
    shift: int = Field(0, ge=0)
    rotate: float = Field(0.0, ge=0, le=180)
    scale: float = Field(0.0, ge=0, lt=1)
    shear: float = Field(0.0, ge=0, le=1)
    jitter: float = Field(0.0, ge=0, le=1)


class OmniglotSpec(_ClassesSpec):
    kind: Literal["omniglot"]
    within: Literal["alphabet"] | None = None
    augment: AugmentSpec | None = None
    mirrored_classes: bool = False
    background_only: bool = False


class ImagesSpec(_ClassesSpec):
    kind: Literal["images"]
    path: str = Field(min_length=1)
    size: int = Field(84, ge=1)
    colour: Literal["rgb", "grey"] = "rgb"
    split: dict[str, Any] | None = None
    within: Literal["domain"] | None = None
    augment: AugmentSpec | None = None
    turned_classes: bool = False
    on_too_few: Literal["error", "drop", "shrink"] = "error"
    bad_images: Literal["error", "drop"] = "error"
    follow_links: bool = False


class PixelsSpec(_Strict):
    kind: Literal["pixels"]
    of: Literal["glyphs", "omniglot"] = "glyphs"
    shots: SizeSpec = [10, 200]
    queries: int = Field(200, ge=1)
    train_queries: int | None = Field(None, ge=1)
    frequencies: int = Field(0, ge=0)


class EpisodesSpec(_Strict):
    kind: Literal["episodes"]
    path: str | list[str]


class ReadingSpec(_Strict):
    """How a file of text is written, where it cannot be told from the file."""

    delimiter: str | None = None
    encoding: str | None = None
    decimal: Literal[".", ","] | None = None
    missing: list[str] | None = None


class TableSpec(_Strict):
    kind: Literal["table"]
    path: str
    group: str | None = None
    target: str | list[str] | None = None
    classes: str | None = None
    target_type: Literal["regression", "classification"] | None = None
    inputs: list[str] | None = None
    ignore: list[str] = []
    kinds: dict[str, str] = {}
    time: str | None = None
    domain: str | None = None
    split: dict[str, Any] = {"ratio": [0.7, 0.15, 0.15]}
    ways: SizeSpec = 5
    shots: SizeSpec = 10
    queries: SizeSpec = 10
    train_queries: SizeSpec | None = None
    imbalance: Literal["random", "linear", "step"] | None = None
    label_noise: float = Field(0.0, ge=0, lt=1)
    on_too_few: Literal["error", "drop", "shrink"] = "error"
    reading: ReadingSpec = ReadingSpec()
    bad_rows: Literal["error", "drop"] = "error"


class SeriesSpec(_Strict):
    kind: Literal["series"]
    path: str
    time: str
    series: str | None = None
    value: str | None = None
    covariates: list[str] = []
    context_length: int = Field(24, ge=2)
    horizon: int = Field(6, ge=1)
    stride: int | None = Field(None, ge=1)
    season: int = Field(1, ge=1)
    scale: Literal["support", "global"] = "support"
    kinds: dict[str, str] = {}
    domain: str | None = None
    split: dict[str, Any] = {"ratio": [0.7, 0.15, 0.15]}
    shots: SizeSpec = 5
    queries: SizeSpec = 5
    train_queries: SizeSpec | None = None
    on_too_few: Literal["error", "drop", "shrink"] = "error"
    reading: ReadingSpec = ReadingSpec()
    bad_rows: Literal["error", "drop"] = "error"


class _OfUsersSpec(_Strict):
    target_type: Literal["number", "levels"] = "number"
    like: float | None = None
    item_mean_feature: bool = False
    signup_time: bool = False
    cold: Literal["users", "items", "both", "none"] = "users"
    start: Literal["any", "first"] = "any"
    train_order: Literal["given", "random", "both"] = "given"
    user_sampling_power: float = Field(0.0, ge=0, le=1)
    split: dict[str, Any] = {"ratio": [0.7, 0.15, 0.15]}
    shots: SizeSpec = 10
    train_shots: SizeSpec | None = None
    queries: SizeSpec = 10
    train_queries: SizeSpec | None = None
    negatives: int = Field(4, ge=1)
    query_negatives: int | None = Field(None, ge=1)
    on_too_few: Literal["error", "drop", "shrink"] = "error"
    bad_rows: Literal["error", "drop"] = "error"


class RatingsSpec(_OfUsersSpec):
    kind: Literal["ratings"]
    path: str
    user: str = "user"
    item: str = "item"
    rating: str | None = "rating"
    time: str | None = None
    users: str | None = None
    items: str | None = None
    title: str | None = None
    kinds: dict[str, str] = {}
    reading: ReadingSpec = ReadingSpec()


class MovielensSpec(_OfUsersSpec):
    kind: Literal["movielens"]
    path: str | None = None
    feedback: Literal["ratings", "clicks"] = "ratings"
    timed: bool = True


class TextSpec(_ClassesSpec):
    kind: Literal["text"]
    path: str
    text: str = "text"
    label: str = "label"
    domain: str = "domain"
    features: Literal["words", "characters", "ids", "encoder", "tokens"] = "words"
    encoder: str | None = None
    ngrams: list[Annotated[int, Field(ge=1)]] | None = Field(None, min_length=2, max_length=2)
    width: int | None = Field(None, ge=1)
    split: dict[str, Any] | None = None
    within: Literal["domain"] | None = None
    out_of_scope_label: str | None = None
    on_too_few: Literal["error", "drop", "shrink"] = "error"
    bad_rows: Literal["error", "drop"] = "error"
    reading: ReadingSpec = ReadingSpec()


class CorpusSpec(_Strict):
    kind: Literal["corpus"]
    path: str
    task: str = "file"
    pattern: str | None = None
    text: str = "text"
    files: str = "*.txt"
    markup: Literal["keep", "drop"] = "keep"
    without: list[str] | None = None
    unit: Literal["characters", "bytes", "tokens"] = "characters"
    tokenizer: str | None = None
    length: int = Field(64, ge=1)
    pretrain_length: int | None = Field(None, ge=1)
    shots: SizeSpec = 8
    queries: SizeSpec = 8
    train_queries: SizeSpec | None = None
    order: Literal["given", "random"] = "given"
    split: dict[str, Any] | None = None
    on_too_few: Literal["error", "drop", "shrink"] = "error"
    bad_rows: Literal["error", "drop"] = "error"
    reading: ReadingSpec = ReadingSpec()


class FromHfSpec(_Strict):
    """A Hugging Face dataset; `tasks` is the source that is made of it, without a path of its own."""

    kind: Literal["from_hf"]
    path: str
    parts: list[str] | None = None
    columns: dict[str, str] | None = None
    tasks: Annotated[
        ImagesSpec | TableSpec | SeriesSpec | RatingsSpec | TextSpec | CorpusSpec, Field(discriminator="kind")
    ]

    @model_validator(mode="before")
    @classmethod
    def _one_path(cls, data: Any) -> Any:
        """Give `tasks` the path, which it is opened with."""
        if isinstance(data, dict) and isinstance(data.get("tasks"), dict) and "path" in data:
            if data["tasks"].get("path", data["path"]) != data["path"]:
                raise ValueError("tasks takes no path of its own")
            return data | {"tasks": data["tasks"] | {"path": data["path"]}}
        return data


OneSourceSpec = (
    SinusoidsSpec
    | GaussianProcessesSpec
    | TabularPriorsSpec
    | GlyphsSpec
    | OmniglotSpec
    | PixelsSpec
    | ImagesSpec
    | TableSpec
    | SeriesSpec
    | RatingsSpec
    | MovielensSpec
    | TextSpec
    | CorpusSpec
    | FromHfSpec
    | EpisodesSpec
)


class MixtureSpec(_Strict):
    kind: Literal["mixture"]
    sources: dict[str, Annotated[OneSourceSpec, Field(discriminator="kind")]]
    weights: dict[str, float] | None = None
    heldout: dict[str, list[str]] | None = None


class RatingMlpSpec(_Strict):
    kind: Literal["rating_mlp"]
    embedding: int = Field(16, ge=1)
    hidden: list[Annotated[int, Field(ge=1)]] = Field([64, 32], min_length=1)


class TwoTowerSpec(_Strict):
    kind: Literal["two_tower"]
    width: int = Field(32, ge=1)
    hidden: int = Field(64, ge=1)


class FactorisationSpec(_Strict):
    kind: Literal["factorisation"]
    factors: int = Field(24, ge=1)
    hidden: int = Field(32, ge=1)


class MlpSpec(_Strict):
    kind: Literal["mlp"]
    hidden: list[Annotated[int, Field(ge=1)]] = [40, 40]


class EncoderSpec(_Strict):
    """The encoder that the source names, whose features are tokens."""

    kind: Literal["encoder"]
    tune: Literal["head", "full", "lora"] = "lora"
    layers: int | None = Field(None, ge=1)
    rank: int = Field(8, ge=1)


class Conv4Spec(_Strict):
    kind: Literal["conv4"]
    channels: (
        Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=4, max_length=4)]
    ) = 64
    downsample: Literal["pool", "pool_first", "stride"] = "pool"
    length: float | None = Field(None, gt=0)
    views: Literal[1, 5] = 1


class ResNet12Spec(_Strict):
    kind: Literal["resnet12"]
    widths: list[Annotated[int, Field(ge=1)]] = Field([64, 160, 320, 640], min_length=4, max_length=4)
    keep_prob: float = Field(0.9, gt=0, le=1)
    block_size: int = Field(5, ge=1)


class LanguageModelSpec(_Strict):
    kind: Literal["language_model"]
    body: Literal["gru", "lstm", "transformer"] = "lstm"
    width: int = Field(128, ge=1)
    layers: int = Field(1, ge=1)
    embedding: int | None = Field(None, ge=1)
    tied: bool = True
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class CausalLmSpec(_Strict):
    """The pretrained language model whose tokenizer the source names."""

    kind: Literal["causal_lm"]
    rank: int | None = Field(8, ge=1)


BatchNormSpec = Literal["support", "query", "running", "tasknorm"]


class _GradientSpec(_Strict):
    inner_lr: float = Field(gt=0)
    steps: int = Field(1, ge=0)
    batchnorm: BatchNormSpec = "support"


class MamlSpec(_GradientSpec):
    kind: Literal["maml", "meta_sgd", "meta_curvature", "alfa", "proto_maml"]
    order: Literal[1, 2] = 2
    adaptable: str = "*"


class AnilSpec(_GradientSpec):
    kind: Literal["anil", "boil"]
    order: Literal[1, 2] = 2


class FomamlSpec(_GradientSpec):
    kind: Literal["fomaml"]
    rule: Literal["sgd", "adam"] = "sgd"
    adaptable: str = "*"
    minibatch: int | None = Field(None, ge=1)


class ReptileSpec(_GradientSpec):
    kind: Literal["reptile"]
    train_on: Literal["both", "support"] = "both"
    momentum: float = Field(0.0, ge=0, lt=1)
    adaptable: str = "*"
    minibatch: int | None = Field(None, ge=1)


class DynamicEvaluationSpec(_Strict):
    kind: Literal["dynamic_evaluation"]
    inner_lr: float = Field(gt=0)
    passes: int = Field(1, ge=0)
    context_windows: int = Field(1, ge=0)
    causal_queries: bool = True
    rates: Literal["one", "tensor", "element"] = "tensor"
    rule: Literal["sgd", "adam"] = "sgd"
    order: Literal[1, 2] = 1
    adaptable: str = "*"


class MamlPpSpec(_GradientSpec):
    kind: Literal["maml_pp"]
    multi_step: float = Field(0.15, ge=0, le=1)
    first_order: float = Field(0.3, ge=0, le=1)
    adaptable: str = "*"


class ImamlSpec(_GradientSpec):
    kind: Literal["imaml"]
    proximity: float = Field(1.0, gt=0)
    damping: float = Field(0.0, ge=0)
    method: Literal["cg", "neumann"] = "cg"
    iterations: int = Field(5, ge=1)
    adaptable: str = "*"


class _HeadSpec(_Strict):
    batchnorm: BatchNormSpec = "support"


class _PretrainedSpec(_Strict):
    batchnorm: BatchNormSpec = "running"


class ProtonetSpec(_HeadSpec):
    kind: Literal["protonet"]
    distance: Literal["euclidean", "cosine"] = "euclidean"


class R2d2Spec(_HeadSpec):
    kind: Literal["r2d2"]
    l2: float = Field(1.0, gt=0)
    scale: float | None = Field(10.0, gt=0)


class AlpacaSpec(_Strict):
    kind: Literal["alpaca"]
    noise: float = Field(1.0, gt=0)
    prior: float = Field(0.35, gt=0)
    hidden: int = Field(32, ge=1)
    item_penalty: float = Field(8.0, ge=0)


class MeluSpec(_GradientSpec):
    kind: Literal["melu"]
    order: Literal[1, 2] = 2


class LogisticRegressionSpec(_HeadSpec):
    kind: Literal["logistic_regression"]
    l2: float = Field(1.0, gt=0)
    scale: float | None = Field(None, gt=0)


class MetaoptnetSpec(_HeadSpec):
    kind: Literal["metaoptnet"]
    base: Literal["svm", "ridge"] = "svm"
    l2: float | None = Field(None, gt=0)
    scale: float = Field(1.0, gt=0)


class MatchingNetSpec(_HeadSpec):
    kind: Literal["matching_net"]
    context_steps: int = Field(0, ge=0)
    scale: float = Field(10.0, gt=0)


class RelationNetSpec(_HeadSpec):
    kind: Literal["relation_net"]
    hidden: int = Field(64, ge=1)
    loss: Literal["squared", "objective"] = "squared"


class FeatSpec(_HeadSpec):
    kind: Literal["feat"]
    temperature: float = Field(8.0, gt=0)
    contrast: float = Field(0.1, ge=0)
    dropout: float = Field(0.5, ge=0, lt=1)


class FrnSpec(_HeadSpec):
    kind: Literal["frn"]
    scale: float = Field(10.0, gt=0)


class PmfSpec(_HeadSpec):
    kind: Literal["pmf"]
    inner_lr: float = Field(gt=0)
    steps: int = Field(50, ge=0)
    shift: int = Field(2, ge=0)
    flip: bool = False
    distance: Literal["euclidean", "cosine"] = "cosine"


class SimpleshotSpec(_PretrainedSpec):
    kind: Literal["simpleshot"]
    scale: float = Field(10.0, gt=0)


class PldaSpec(_PretrainedSpec):
    kind: Literal["plda"]
    within: float = Field(0.9, gt=0, le=1)
    between: float = Field(0.6, gt=0, le=1)
    scale: float = Field(1.0, gt=0)


class BaselinePpSpec(_PretrainedSpec):
    kind: Literal["baseline_pp"]
    inner_lr: float = Field(gt=0)
    steps: int = Field(100, ge=0)
    scale: float = Field(10.0, gt=0)


class LaplacianShotSpec(_PretrainedSpec):
    kind: Literal["laplacian_shot"]
    neighbours: int = Field(3, ge=1)
    smoothness: float = Field(1.0, ge=0)
    steps: int = Field(20, ge=0)


class TransductiveFineTuneSpec(_PretrainedSpec):
    kind: Literal["transductive_fine_tune"]
    inner_lr: float = Field(gt=0)
    steps: int = Field(25, ge=0)
    entropy: float = Field(1.0, ge=0)
    order: Literal[1, 2] = 1


class CnapsSpec(_Strict):
    """Its encoder is a model as the run's, with an output for each number of the context."""

    kind: Literal["cnaps"]
    film: list[str] = Field(min_length=1)
    task_dim: int = Field(64, ge=1)
    head: Literal["mahalanobis", "prototypes"] = "mahalanobis"
    batchnorm: BatchNormSpec = "support"


class CnpSpec(_Strict):
    kind: Literal["cnp"]
    width: int = Field(128, ge=1)
    depth: int = Field(3, ge=1)
    min_std: float = Field(0.01, gt=0, lt=1)


class AttentiveNpSpec(_Strict):
    kind: Literal["attentive_np"]
    width: int = Field(128, ge=1)
    depth: int = Field(3, ge=1)
    heads: int = Field(8, ge=1)
    min_std: float = Field(0.01, gt=0, lt=1)


class TanpSpec(_Strict):
    kind: Literal["tanp"]
    width: int = Field(128, ge=1)
    depth: int = Field(3, ge=1)
    clusters: int = Field(8, ge=1)
    min_std: float = Field(0.01, gt=0, lt=1)


class TnpDSpec(_Strict):
    kind: Literal["tnp_d"]
    width: int = Field(64, ge=1)
    depth: int = Field(1, ge=1)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    min_std: float = Field(0.01, gt=0, lt=1)


class PriorFittedSpec(_Strict):
    kind: Literal["prior_fitted"]
    classes: int = Field(10, ge=2)
    cell_width: int = Field(32, ge=1)
    width: int = Field(96, ge=1)
    heads: int = Field(4, ge=1)
    cell_layers: int = Field(2, ge=1)
    layers: int = Field(3, ge=1)


RatingModelSpec = RatingMlpSpec | TwoTowerSpec | FactorisationSpec
ModelSpec = MlpSpec | RatingModelSpec | LanguageModelSpec | CausalLmSpec | Conv4Spec | ResNet12Spec | EncoderSpec
NeuralProcessSpec = CnpSpec | AttentiveNpSpec | TanpSpec | TnpDSpec
"""Learners that are a network of their own; a model, if there is one, embeds the inputs."""
OwnNetworkSpec = NeuralProcessSpec | PriorFittedSpec
"""Learners that need no model."""


class PretrainSpec(_Strict):
    steps: int = Field(ge=1)
    batch: int = Field(128, ge=1)
    outer_lr: float = Field(1e-3, gt=0)
    objective: Literal["classification", "contrastive"] = "classification"
    output: Literal["linear", "cosine"] = "linear"
    temperature: float = Field(0.1, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"


class TrainSpec(_Strict):
    steps_per_round: int = Field(100, ge=1)
    tasks_per_step: int = Field(4, ge=1)
    outer_lr: float = Field(1e-3, gt=0)
    clip: float | None = Field(10.0, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    mode: Literal["auto", "loop", "vmap", "traced", "compiled"] = "loop"
    checkpoint_seconds: float = Field(30.0, gt=0)


class BudgetSpec(_Strict):
    rounds: int | None = Field(20, ge=1)
    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)


class EvaluateSpec(_Strict):
    """`shots` are those of the learning curve, which takes the first `num_shots_tasks` test tasks at each."""

    num_val_tasks: int = Field(100, ge=2)
    num_test_tasks: int = Field(600, ge=2)
    shots: list[Annotated[int, Field(ge=1)]] = [1, 2, 5, 10, 20]
    num_shots_tasks: int = Field(100, ge=2)


RecommenderName = Literal[
    "global_mean", "user_mean", "item_mean", "bias", "popularity", "item_knn", "matrix_factorisation"
]
BaselineName = (
    Literal["scratch", "fine_tune", "pretrained", "centroid", "pretrained_centroid", "support_mean"] | RecommenderName
)


class BaselinesSpec(_Strict):
    """`rule` is fine-tuning's. `inner_lrs`, and `steps` where several are given, are tried on validation tasks; each
    baseline keeps its best. No `names`: those that fit the tasks."""

    names: list[BaselineName] | None = None
    steps: Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = 50
    rule: Literal["sgd", "adam"] = "sgd"
    inner_lrs: list[Annotated[float, Field(gt=0)]] = Field([0.01, 0.1], min_length=1)
    num_val_tasks: int = Field(20, ge=2)
    num_test_tasks: int = Field(100, ge=2)


class RejectSpec(_Strict):
    """What is unlike all classes of a task is rejected, above a threshold that validation tasks set."""

    score: Literal["energy", "nearest", "probability"] = "energy"
    false_rejection: float = Field(0.05, ge=0, lt=1)
    outsiders: int = Field(50, ge=1)


class Spec(_Strict):
    """A run file. `docs` for each field stand in docs/run-files.md."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    source: Annotated[OneSourceSpec | MixtureSpec, Field(discriminator="kind")]
    model: Annotated[ModelSpec, Field(discriminator="kind")] | None = None
    learner: Annotated[
        MamlSpec
        | AnilSpec
        | FomamlSpec
        | ReptileSpec
        | DynamicEvaluationSpec
        | MamlPpSpec
        | ImamlSpec
        | ProtonetSpec
        | CnapsSpec
        | R2d2Spec
        | AlpacaSpec
        | MeluSpec
        | LogisticRegressionSpec
        | MetaoptnetSpec
        | MatchingNetSpec
        | RelationNetSpec
        | FeatSpec
        | FrnSpec
        | PmfSpec
        | SimpleshotSpec
        | PldaSpec
        | BaselinePpSpec
        | LaplacianShotSpec
        | TransductiveFineTuneSpec
        | OwnNetworkSpec,
        Field(discriminator="kind"),
    ]
    pretrain: PretrainSpec | None = None
    train: TrainSpec = TrainSpec()
    target: str
    budget: BudgetSpec = BudgetSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    baselines: BaselinesSpec = BaselinesSpec()
    reject: RejectSpec | None = None
    seed: int = Field(0, ge=0)
    task_seed: int = Field(0, ge=0)
    device: str = "auto"

    @model_validator(mode="after")
    def _a_model_where_one_is_needed(self) -> Spec:
        own = isinstance(self.learner, OwnNetworkSpec)
        if isinstance(self.learner, PriorFittedSpec) and self.model is not None:
            raise ValueError(f"learner {self.learner.kind} is a network of its own: leave out 'model'")
        if not own and self.model is None:
            raise ValueError(f"learner {self.learner.kind} adapts a model: the key 'model' is missing")
        needing = {"scratch", "fine_tune", "pretrained", "pretrained_centroid"} & set(self.baselines.names or [])
        if self.model is None and (self.pretrain or needing):
            part = "pretrain" if self.pretrain else f"baseline {min(needing)}"
            raise ValueError(f"{part} needs a model, and learner {self.learner.kind} has none")
        return self

    def to_yaml(self) -> str:
        """The whole file, defaults spelt out."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def recipes() -> dict[str, str]:
    """The recipes that come with kshot: name to text."""
    folder = resources.files("kshot.app") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text() for f in files}


def load_spec(name: str, overrides: list[str] | None = None) -> Spec:
    """Read a recipe by its name or a run file by its path, with `PATH=VALUE` overrides.

    Raises:
        ValueError: no such recipe or file, no YAML, a wrong key (naming it, its line and the nearest right one), a
            value out of bounds.

    Example:
        >>> load_spec("sinusoid", ["learner.steps=2"]).learner.steps
        2
    """
    known = recipes()
    path = Path(name)
    if name in known:
        where, text = f"recipe {name}", known[name]
    elif path.is_file():
        where, text = str(path), path.read_text()
    elif path.suffix in (".yaml", ".yml") or path.parent != Path("."):
        raise ValueError(f"there is no run file {name}")
    else:
        raise ValueError(f"there is no recipe {name!r}{_nearest(name, known)}; `kshot recipes` lists them")
    return parse_spec(text, where, overrides)


def parse_spec(text: str, where: str, overrides: list[str] | None = None) -> Spec:
    """Check the text of a run file; `where` names it in errors."""
    try:
        data = yaml.safe_load(text)
        lines = dict(_lines(yaml.compose(text)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{where}{line}: this is not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{where}: a run file holds keys and values, such as 'name: my-run'; this holds none")
    for override in overrides or []:
        lines[_override(data, override)] = 0
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        messages = [_explain(entry, lines, where) for entry in error.errors()]  # type: ignore[arg-type]
        raise ValueError("\n".join(messages)) from None


def _override(data: dict[str, Any], text: str) -> tuple[str, ...]:
    """Set what a `PATH=VALUE` says, and return the path."""
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
    try:
        node[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"--set {text}: {value!r} is not a YAML value") from None
    return tuple(keys)


def _lines(node: yaml.Node | None, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Each key's path in the file, and its line counted from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*path, number), value.start_mark.line + 1
            yield from _lines(value, (*path, number))


def _explain(entry: dict[str, Any], lines: dict[tuple[str | int, ...], int], where: str) -> str:
    model, path = _resolve(entry["loc"])
    line = lines.get(path)
    place = where if line is None else f"{where}, line {line}" if line else "--set"
    key = ".".join(map(str, path)) or "the file"
    if entry["type"] == "extra_forbidden":
        fields = sorted(model.model_fields) if model else []
        return f"{place}: unknown key {key!r}{_nearest(str(path[-1]), fields)}"
    if entry["type"] == "missing":
        return f"{place}: the key {key!r} is missing"
    if entry["type"] == "union_tag_invalid":
        given, expected = entry["ctx"]["tag"], entry["ctx"]["expected_tags"].replace("'", "")
        return f"{place}: {key} has no kind {given!r}{_nearest(given, expected.split(', '))}"
    if entry["type"] == "union_tag_not_found":
        return f"{place}: {key} needs a 'kind'"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{place}: {key}: {message[0].lower()}{message[1:]}, got {entry['input']!r}"


def _resolve(loc: tuple[str | int, ...]) -> tuple[type[BaseModel] | None, tuple[str | int, ...]]:
    """The model that a pydantic location ends in, and the location as a path in the file (union tags left out)."""
    model: type[BaseModel] | None = Spec
    path: list[str | int] = []
    options: list[type[BaseModel]] = []
    named = False  # whether the next part is a name that the user gave, as those of a mixture's sources
    for part in loc:
        tagged = [option for option in options if part in get_args(option.model_fields["kind"].annotation)]
        if tagged and not named:
            model, options = tagged[0], []
            continue
        path.append(part)
        field = model.model_fields.get(str(part)) if model and not named else None
        named = field is not None and get_origin(field.annotation) is dict
        inner = _models(field.annotation) if field else []
        if inner:
            model, options = inner[0], inner if "kind" in inner[0].model_fields else []
    return model, tuple(path)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _nearest(word: str, known: Any) -> str:
    found = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f": did you mean {found[0]!r}?" if found else f"; known are {', '.join(known)}"
