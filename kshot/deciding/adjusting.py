"""What decisions may change between rounds: settings of the outer optimisation, the learner and training tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from kshot.learner import Learner, evaluation_mode, query_loss
from kshot.tasks.source import TaskSource
from kshot.training.fit import Settings, seeded
from kshot.types import to

UNFROZEN = "learner.unfrozen"
"""The setting that says which parameters are trained of those that are frozen at the start."""


class Adjustable:
    r"""The settings of a run that decisions may change.

    | name | what it sets |
    | --- | --- |
    | `outer_lr`, `clip`, `weight_decay`, `size`, … | the outer optimisation, see `kshot.training.fit.Settings` |
    | `learner.steps`, `learner.order` | inner steps, and order of their derivatives, see `Learner.inner_settings` |
    | `learner.unfrozen` | shell patterns of the names of parameters that are frozen at the start, to be trained |
    | `source.shots`, `source.ways`, … | training tasks, see `TaskSource.training_settings` |

    Settings of the learner hold for validation and afterwards, too; those of the source for training tasks alone.

    Args:
        learner: changed in place.
        source: of the training tasks, as they are without changes; None if only the learner is to be set.

    Attributes:
        changed: the settings of learner and source that are not those of the start.
        tasks: the source of the training tasks under the present settings.

    Example:
        >>> learner = kshot.maml(nn.Linear(1, 1), inner_lr=0.1, order=1, objective=kshot.objectives.mse)
        >>> adjustable = Adjustable(learner, kshot.sources.sinusoids())
        >>> adjustable.values
        {'learner.steps': 1, 'learner.order': 1, 'source.shots': 10, 'source.queries': 10}
        >>> adjustable.apply({"learner.order": 2})
        >>> type(learner.solver).__name__, adjustable.changed
        ('Unrolled', {'learner.order': 2})
    """

    def __init__(self, learner: Learner, source: TaskSource | None) -> None:
        self.learner, self.source, self.tasks = learner, source, source
        self.changed: dict[str, Any] = {}
        self._frozen = {
            name: parameter
            for name, parameter in learner.named_parameters()
            if not parameter.requires_grad and parameter.is_floating_point()
        }
        of_learner = {f"learner.{name}": value for name, value in learner.inner_settings.items()}
        of_source = source.training_settings if source is not None else {}
        self._start: dict[str, Any] = {
            **of_learner,
            **({UNFROZEN: []} if self._frozen else {}),
            **{f"source.{name}": value for name, value in of_source.items()},
        }

    @property
    def values(self) -> dict[str, Any]:
        """The present values of all settings of the learner and the source that may change."""
        return self._start | self.changed

    def apply(self, settings: Mapping[str, Any]) -> None:
        """Change settings of the learner and the source; those of the outer optimisation are left to the caller.

        Raises:
            ValueError: a setting that there is not, or a value out of bounds; nothing is changed then.
        """
        self._check_names(settings)
        wanted = self.changed | {name: value for name, value in plain(settings).items() if "." in name}
        changed = {name: value for name, value in wanted.items() if value != self._start[name]}
        of_source, tasks = _part(changed, "source"), self.source
        try:
            if tasks is not None and of_source:
                tasks = tasks.with_training(**of_source)
            unfrozen = self._matching(changed.get(UNFROZEN, []))
            of_learner = _part(self._start | changed, "learner")
            of_learner.pop("unfrozen", None)
            self.learner.set_inner(**of_learner)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{_written(settings)}: {error}") from None
        for name, parameter in self._frozen.items():
            parameter.requires_grad_(name in unfrozen)
        self.tasks, self.changed = tasks, changed

    def reset_to(self, changed: Mapping[str, Any]) -> None:
        """Set the settings that an earlier `changed` held, and all others as at the start."""
        self.apply(self._start | dict(changed))

    def check(self, actions: Sequence[Mapping[str, Any]]) -> None:
        """Set the settings of each action, adapt to a training task with them, and set those of before again.

        Raises:
            ValueError: the learner or the source does not permit them, with the reason.
        """
        before = dict(self.changed)
        for action in actions:
            try:
                self.apply(action)
                replace(Settings(), **outer_part(action))
                self._try(unfrozen=UNFROZEN in action)
            except (ValueError, RuntimeError, KeyError) as error:
                said = (str(error) or type(error).__name__).splitlines()[0].removeprefix(f"{_written(action)}: ")
                raise ValueError(f"a policy of this run cannot set {_written(action)}: {said}") from error
            finally:
                self.reset_to(before)

    def _check_names(self, settings: Mapping[str, Any]) -> None:
        known = [*(each.name for each in fields(Settings)), *self._start]
        for name in settings:
            if name in known:
                continue
            part = name.split(".")[0]
            why = f"for this {part} it is fixed" if part in ("learner", "source") else "there is no such setting"
            if name == UNFROZEN:
                why = "no parameter of this learner is frozen"
            raise ValueError(f"{_written(settings)}: {why}; what may change is {', '.join(known)}")

    def _matching(self, patterns: Any) -> set[str]:
        """The names of the frozen parameters that match a shell pattern, or one of several."""
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ValueError("it takes a shell pattern of names of parameters, or a list of them")
        matching = {pattern: {name for name in self._frozen if fnmatchcase(name, pattern)} for pattern in patterns}
        for pattern, names in matching.items():
            if not names:
                more = ", …" * (len(self._frozen) > 5)
                raise ValueError(
                    f"{pattern!r} matches none of the frozen parameters {', '.join([*self._frozen][:5])}{more}"
                )
        return set().union(*matching.values())

    def _try(self, *, unfrozen: bool) -> None:
        """Adapt to a training task, and look for a gradient of a parameter where some were unfrozen."""
        if self.tasks is None:
            return
        device = next((parameter.device for parameter in self.learner.parameters()), None)
        task = to(self.tasks.task("train", 0), device)
        with seeded(0, device=device), evaluation_mode(self.learner):
            query_loss(self.learner, task)
            if not unfrozen:
                return
            trained = [parameter for parameter in self._frozen.values() if parameter.requires_grad]
            with torch.enable_grad():
                loss = self.learner(task)
                grads = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else ()
        if all(grad is None for grad in grads):
            raise ValueError("the loss does not depend on what it unfreezes")


def outer_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are of the outer optimisation."""
    return {name: value for name, value in settings.items() if "." not in name}


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON reads them again, so that a resumed run compares equal ones as equal."""
    return dict(json.loads(json.dumps(settings)))


def set_learner(learner: Learner, changed: Mapping[str, Any]) -> None:
    """Set the settings of a learner that an `Adjustable.changed` holds, such as that of a checkpoint."""
    Adjustable(learner, None).apply({name: value for name, value in changed.items() if name.startswith("learner.")})


def _part(settings: Mapping[str, Any], of: str) -> dict[str, Any]:
    return {name.removeprefix(f"{of}."): value for name, value in settings.items() if name.startswith(f"{of}.")}


def _written(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in settings.items())
