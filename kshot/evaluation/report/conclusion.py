"""The conclusion of a report in one place: its headline, the tone of the headline, and the exit code of the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from kshot.evaluation.report.formatting import read_figure
from kshot.evaluation.report.verdict import failed
from kshot.evaluation.target import Target

MET, MISSED, UNTRUSTED = 0, 1, 3


class Conclusion(NamedTuple):
    """What a run came to.

    Attributes:
        headline: a few words.
        tone: colour of the headline, a CSS class.
        sentence: the same as a sentence.
        exit_code: 0 if the target is met, or `kshot auto` was given none, 1 if not, 3 if the test figure is not to be
            trusted.
    """

    headline: str
    tone: Literal["good", "fair", "bad"]
    sentence: str
    exit_code: int


def conclude(report: Mapping[str, Any]) -> Conclusion:
    """The conclusion of a report: the target is met if validation meets it and the test does not contradict.

    Example:
        >>> test = {"accuracy": {"mean": 0.8, "ci95": 0.02, "num_tasks": 600}}
        >>> report = {"metric": "accuracy", "target": "accuracy >= 0.9", "outcome": "TARGET_MET", "test": test}
        >>> conclude(report).exit_code, conclude(report).headline
        (1, 'target missed on the test')
    """
    sentence, outcome = report.get("sentence") or "", report.get("outcome") or ""
    if failed(report) or report.get("trusted") is False:
        return Conclusion("not to be trusted", "bad", f"{sentence} The test figure is not to be trusted.", UNTRUSTED)
    if outcome != "DIVERGED" and report.get("choice") and not report.get("target"):
        return Conclusion("tested", "good", sentence, MET)
    if outcome != "TARGET_MET":
        tone: Literal["fair", "bad"] = "bad" if outcome == "DIVERGED" else "fair"
        return Conclusion(outcome.replace("_", " ").lower(), tone, sentence, MISSED)
    target = Target.parse(report["target"]) if report.get("target") else None
    test = read_figure(report.get("test"), report["metric"])
    if target and target.metric == report["metric"] and target.missed(test._replace(ci95=test.half_width)):
        text = f"The target, {target}, is met on validation tasks, but missed on the test tasks."
        return Conclusion("target missed on the test", "fair", text, MISSED)
    return Conclusion("target met", "good", sentence, MET)
