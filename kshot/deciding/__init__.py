"""Rounds of training and evaluation, and the policies that decide after each of them."""

from kshot.deciding.decisions import Change, Continue, Decision, EventLog, Outcome, Policy, Rollback, Round, Stop
from kshot.deciding.loop import Observer, Run, run_until
from kshot.deciding.policies import Budget, rules

__all__ = [
    "Budget",
    "Change",
    "Continue",
    "Decision",
    "EventLog",
    "Observer",
    "Outcome",
    "Policy",
    "Rollback",
    "Round",
    "Run",
    "Stop",
    "rules",
    "run_until",
]
