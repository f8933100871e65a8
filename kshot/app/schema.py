"""The schema of a run file's parts, made from the signatures of their factories.

A part is a source, a model, a learner, an objective, a policy or a tracker. Its `kind` names a factory: one of kshot's,
or `package.module:factory`. The annotations of the factory's arguments say which of them are keys of the run file,
within which bounds (`kshot.annotations`), and which the run supplies (`kshot.supplied`).
"""

from __future__ import annotations

import inspect
import types
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints
from warnings import catch_warnings, simplefilter

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, create_model, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from kshot.annotations import Checked, Declared, OptionsOf, PartOfFile, Supplied
from kshot.app.importing import constant, imported, load, nearest


class Role(NamedTuple):
    """The module with kshot's factories of a role, such as learners, and the type that they return ("module:name")."""

    module: str
    result: str


ROLES = {
    "source": Role("kshot.sources", "kshot.tasks.source:TaskSource"),
    "model": Role("kshot.models", "torch.nn:Module"),
    "learner": Role("kshot.learners", "kshot.learner:Learner"),
    "objective": Role("kshot.objectives", "kshot.objectives:Objective"),
    "policy": Role("kshot.deciding.policies", "kshot.deciding.decisions:Policy"),
    "baseline": Role("kshot.learners", "kshot.learner:Learner"),
    "tracker": Role("kshot.app.tracking", "kshot.app.tracking.tracker:Tracker"),
}
BY_TYPE = (
    "kshot.objectives:Objective",
    "kshot.evaluation.target:Target",
    "kshot.deciding.policies:Budget",
    "kshot.deciding.past:Past",
    "kshot.app.tracking.tracker:TrackedRun",
)
"""The types of arguments that are supplied without a marker."""


class Strict(BaseModel):
    """A mapping of a run file. An unknown key is an error that gives the nearest known one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="wrap")
    @classmethod
    def _with_known_keys(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            details = [_detail(entry, cls.model_fields) for entry in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, details) from None


def _detail(entry: Any, known: Iterable[str]) -> InitErrorDetails:
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "extra_forbidden" and len(entry["loc"]) == 1:
        kind = problem(nearest(str(entry["loc"][0]), sorted(known)), "unknown_key")
    elif "message" in context:
        kind = problem(context["message"], kind)
    return InitErrorDetails(type=kind, loc=entry["loc"], input=entry["input"], ctx=context)


def problem(message: str, kind: str = "part") -> PydanticCustomError:
    """An error of a run file whose message needs no input to be understood."""
    return PydanticCustomError(kind, "{message}", {"message": message})


class Part(Strict):
    """A part of a run file: its kind, and its factory's options."""

    kind: str
    _factory: ClassVar[Any] = None
    _role: ClassVar[str] = ""


def factory_of(part: Part) -> Callable[..., Any]:
    return part._factory


def role_of(part: Part) -> str:
    return part._role


def model_of(part: Part) -> Part | None:
    """The model that a learner among the options of another has for itself; None if it adapts the run's."""
    model = getattr(part, "model", None)
    return model if isinstance(model, Part) and role_of(model) == "model" else None


def learners_of(part: Part, *, of_run_model: bool = False) -> Iterator[Part]:
    """A learner of a run file, and those among its options, such as the plans of `choose`.

    Args:
        of_run_model: whether to leave out those among its options that have a model of their own.
    """
    yield part
    for value in vars(part).values():
        for option in value.values() if isinstance(value, dict) else [value]:
            if not isinstance(option, Part) or role_of(option) != "learner":
                continue
            if not (of_run_model and model_of(option)):
                yield from learners_of(option, of_run_model=of_run_model)


@dataclass(frozen=True)
class Argument:
    """An argument of a factory, as its annotation describes it.

    Attributes:
        name, default: as in `inspect.Parameter`.
        optional: whether it may be None.
        supplied: what the run supplies, a marker or a type; None if a run file gives it, or nothing does.
        declared: what its value says about the models of a run.
        key, schema: its key in a run file, None if it cannot be written there, and the type of its value.
        problem: why it cannot be given at all, if so.
        passes_on: whether it is another source's factory, whose arguments are passed on.
    """

    name: str
    default: Any
    optional: bool
    supplied: Supplied | type | None
    declared: Declared | None
    key: str | None
    schema: Any
    problem: str | None
    passes_on: bool

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@cache
def describe(factory: Any) -> tuple[Argument, ...]:
    """The arguments of a factory; ValueError if its annotations cannot be evaluated."""
    written = factory.func if isinstance(factory, partial) else factory
    if isinstance(written, type) and written.__init__ is not object.__init__:  # type: ignore[misc]
        written = written.__init__  # type: ignore[misc]
    try:
        hints = get_type_hints(written, include_extras=True)
    except (NameError, TypeError) as error:
        raise ValueError(f"the annotations of its arguments cannot be read: {error}") from None
    arguments: list[Argument] = []
    for parameter in inspect.signature(factory).parameters.values():
        hint = hints.get(parameter.name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            names = {argument.name for argument in arguments}
            for options in _markers(hint, OptionsOf):
                further = describe(options.factory)
                arguments += [each for each in further if each.name not in names.union(options.without)]
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            arguments.append(_argument(parameter, hint))
    return tuple(arguments)


def _argument(parameter: inspect.Parameter, hint: Any) -> Argument:
    supplied = next(_markers(hint, Supplied), None) or (hint if hint in map(load, BY_TYPE) else None)
    nested = next(_markers(hint, PartOfFile), None)
    key, schema = (nested.key, WITHOUT_PATH) if nested else (parameter.name, None if supplied else _schema(hint))
    return Argument(
        parameter.name,
        parameter.default,
        optional=type(None) in get_args(hint),
        supplied=supplied,
        declared=next(_markers(hint, Declared), None),
        key=key if schema is not None else None,
        schema=schema,
        problem=_problem(parameter, hint, supplied is not None, schema),
        passes_on=nested is not None,
    )


def _problem(parameter: inspect.Parameter, hint: Any, supplied: bool, schema: Any) -> str | None:
    name, required = parameter.name, parameter.default is parameter.empty
    if parameter.kind is parameter.POSITIONAL_ONLY:
        return f"its argument {name!r} cannot be given by name; remove the / from its signature"
    if name == "kind" and schema is not None:
        return "its argument 'kind' has the name of the key that chooses the factory; rename it"
    if supplied or not required:
        return None
    is_module = any(isinstance(each, type) and issubclass(each, load("torch.nn:Module")) for each in _leaves(hint))
    if is_module and schema is None:
        return (
            f"its argument {name!r} is a network, and the annotation does not say which: annotate it as "
            "kshot.supplied.BaseModel, the model with a last layer for the task's outputs, or as "
            "kshot.supplied.Embedding, the model without it"
        )
    if parameter.annotation is parameter.empty:
        return f"its argument {name!r} has no annotation; kshot.supplied has those of what a run supplies"
    if schema is None:
        return f"its argument {name!r} is neither supplied by a run (see kshot.supplied) nor written in YAML"
    return None


def _leaves(hint: Any) -> Iterator[Any]:
    """The types that a hint unites."""
    origin = get_origin(hint)
    if origin is Annotated:
        yield from _leaves(get_args(hint)[0])
    elif origin in (Union, types.UnionType):
        for option in get_args(hint):
            yield from _leaves(option)
    else:
        yield hint


def _markers(hint: Any, kind: type) -> Iterator[Any]:
    """The markers of one kind in a hint, or in what it unites."""
    if get_origin(hint) is Annotated:
        yield from (marker for marker in hint.__metadata__ if isinstance(marker, kind))
        yield from _markers(get_args(hint)[0], kind)
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            yield from _markers(option, kind)


def _schema(hint: Any) -> Any:
    """The type of values that YAML can write among those of a hint; None if there is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for marker in hint.__metadata__:
            if isinstance(marker, OptionsOf):
                return _model(marker.factory)
            if isinstance(marker, Checked):
                return Annotated[Any, PlainValidator(marker.function)]
        inner = _schema(arguments[0])
        return None if inner is None else Annotated[inner, *hint.__metadata__]
    if origin in (Union, types.UnionType):
        options = [_schema(option) for option in arguments if option not in (type(None), Path)]
        options = [option for option in dict.fromkeys(options) if option is not None]
        if not options:
            return None
        return Union[*options, None] if type(None) in arguments else Union[*options]
    if origin is Literal or hint in (int, float, str, bool, Any):
        return hint
    if hint is Path:
        return str
    if origin in (list, tuple, abc.Sequence, abc.Collection, abc.Iterable):
        inner = _schema(arguments[0])
        return None if inner is None else list[inner]  # type: ignore[valid-type]
    if origin in (dict, abc.Mapping):
        inner = _schema(arguments[1])
        return None if inner is None else dict[arguments[0], inner]  # type: ignore[valid-type]
    role = next((role for role in ("source", "learner") if hint is load(ROLES[role].result)), None)
    return None if role is None else Annotated[Any, part(role, nested=True)]


def _plain(default: Any) -> Any:
    """A default as YAML has it."""
    if isinstance(default, Mapping):
        return {key: _plain(value) for key, value in default.items()}
    return [_plain(value) for value in default] if isinstance(default, (tuple, list)) else default


def _field(argument: Argument) -> Any:
    if argument.required:
        return argument.schema, ...
    if isinstance(argument.schema, type) and issubclass(argument.schema, Strict) and argument.default is not None:
        return argument.schema, Field(default_factory=partial(argument.schema, **argument.default))
    return argument.schema, _plain(argument.default)


@cache
def _model(
    factory: Any, kind: str | None = None, without: tuple[str, ...] = (), role: str = "", nested: bool = False
) -> type[Any]:
    """The model of a factory's options; that of a part where it has a kind and a role.

    A learner among the options of another, which is nested, takes a model of its own besides.
    """
    fields = {argument.key: _field(argument) for argument in describe(factory) if argument.key}
    unknown = set(without) - {argument.name for argument in describe(factory)}
    assert not unknown, f"{factory} has no argument {unknown}"
    fields = {key: field for key, field in fields.items() if key not in without}
    with catch_warnings():
        simplefilter("ignore", UserWarning)  # of arguments that are called like a method of BaseModel
        if kind is None:
            return create_model("Options", __base__=Strict, **fields)
        own = {"model": (Annotated[Any, part("model")] | None, None)} if nested and role == "learner" else {}
        fields = {"kind": (Literal[kind], ...), **own, **fields}
        model = create_model(kind, __base__=Part, **fields)
    model._factory, model._role = staticmethod(factory), role
    return model


def section(path: str, *without: str) -> PlainValidator:
    """The check of a section of a run file: the options of a function or class that is given as "module:name"."""
    return PlainValidator(lambda value: _model(load(path), without=without).model_validate(value))


def part(role: str, *, nested: bool = False) -> PlainValidator:
    """The check of a part of a run file."""
    return PlainValidator(partial(check_part, role, nested=nested))


def check_part(role: str, value: Any, *, without_path: bool = False, nested: bool = False) -> Part:
    """A checked part of a run file; a word stands for a part with that kind and no options.

    Args:
        role, value: a key of `ROLES`, and the value in the file.
        without_path: whether another part gives the path, which is the first argument.
        nested: whether it is among the options of another part.
    """
    if isinstance(value, Part):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict):
        raise problem(f"takes keys and values, 'kind' among them; got {value!r}")
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise problem("needs a 'kind'" if kind is None else f"has no kind {kind!r}{nearest(str(kind), kinds(role))}")
    try:
        factory = imported(kind) if ":" in kind else our_factory(role, kind)
        arguments = describe(factory) if factory else ()
        for argument in arguments:
            if argument.problem:
                raise ValueError(argument.problem)
    except ValueError as error:
        raise problem(f"cannot take kind {kind!r}: {error}") from None
    if factory is None:
        raise problem(f"has no kind {kind!r}{nearest(kind, kinds(role))}")
    if not without_path:
        return _model(factory, kind, role=role, nested=nested).model_validate(value)
    path = next(iter(arguments), None)
    if path is None or not path.required or str not in _leaves(path.schema) or any(a.passes_on for a in arguments):
        raise problem(f"takes a source that is opened by a path, which {kind} is not")
    if "path" in value:
        raise problem("takes no path of its own")
    return _model(factory, kind, without=(path.name,), role=role).model_validate(value)


WITHOUT_PATH = Annotated[Any, PlainValidator(partial(check_part, "source", without_path=True))]


@cache
def kinds(role: str) -> tuple[str, ...]:
    return tuple(sorted(name for name in dir(import_module(ROLES[role].module)) if our_factory(role, name)))


@cache
def our_factory(role: str, kind: str) -> Any:
    """The factory of one of kshot's kinds; None if there is none of the name."""
    factory, result = getattr(import_module(ROLES[role].module), kind, None), load(ROLES[role].result)
    if kind.startswith("_") or kind != kind.lower() or kind == "from_name":
        return None
    if isinstance(result, type) and isinstance(factory, result):
        return constant(factory)
    try:
        made = factory if isinstance(factory, type) else get_type_hints(factory)["return"]
        fits = made == result or all(issubclass(each, result) for each in _leaves(made))
        fits = fits and not any(argument.problem for argument in describe(factory))
    except (TypeError, KeyError, NameError, ValueError):
        return None
    return factory if fits else None
