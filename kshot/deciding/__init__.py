"""Rounds of training and evaluation, and the policies that decide after each of them."""

from kshot.deciding.adjusting import Adjustable
from kshot.deciding.decisions import (
    Change,
    Continue,
    Decision,
    EventLog,
    Outcome,
    Policy,
    Predicted,
    Rollback,
    Round,
    Stop,
)
from kshot.deciding.loop import Observer, Run, run_until
from kshot.deciding.past import Past
from kshot.deciding.policies import Budget, extrapolation, rules

__all__ = [
    "Adjustable",
    "Budget",
    "Change",
    "Continue",
    "Decision",
    "EventLog",
    "Observer",
    "Outcome",
    "Past",
    "Policy",
    "Predicted",
    "Rollback",
    "Round",
    "Run",
    "Stop",
    "extrapolation",
    "rules",
    "run_until",
]
