"""What a run takes from experience, and what it adds to it."""

from __future__ import annotations

from collections.abc import Sequence

from kshot.app.auto.descriptors import describe_data
from kshot.app.build import shapes_of
from kshot.app.goes_with import targets_of
from kshot.app.in_memory import hash_of
from kshot.app.spec import Spec
from kshot.deciding.decisions import EventLog, Round
from kshot.deciding.past import Past
from kshot.deciding.trial import PLAN_KEYS, Cost, Figure, Trial
from kshot.evaluation.target import Target
from kshot.tasks.source import TaskSource


def past_of(spec: Spec, target: Target, source: TaskSource, event_log: EventLog) -> Past:
    """What the policy knows of experience: what the log of the run says, or what the database does, which is logged."""
    if logged := event_log.of("experience"):
        return Past.from_json(logged[0]["trials"])
    from kshot.deciding.experience import Experience  # imports SQLAlchemy

    kind = targets_of(source.objective) or "other"
    past = Past.of(Experience().trials(kind=kind), spec.learner.kind, kind, target.metric)
    event_log.record("experience", trials=past.to_json())
    return past


def keep_trial(spec: Spec, source: TaskSource, rounds: Sequence[Round], num_parameters: int) -> None:
    """Add a run, with the validation figure of each round, to experience."""
    from kshot.deciding.experience import Experience  # imports SQLAlchemy

    target = Target.parse(spec.target)
    figures = [Figure(each.seconds, (figure := target.of(each.val)).mean, figure.ci95) for each in rounds if each.val]
    if not figures:
        return
    plan = {name: getattr(spec, name) for name in PLAN_KEYS if name != "name"}
    trial = Trial(
        descriptors=describe_data(source, shapes_of(source), target),
        plan={name: part.model_dump() for name, part in plan.items() if part is not None},
        figures=figures,
        baseline=None,
        cost=Cost(figures[-1].seconds, num_parameters),
        data_set=hash_of(source),
    )
    Experience().add(trial)
