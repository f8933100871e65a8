"""The verdict of a report: whether the learner beats the baselines, and whether the test figure meets the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kshot.evaluation.audit.findings import Trust, trust
from kshot.evaluation.intervals import Interval
from kshot.evaluation.moments import LEVEL
from kshot.evaluation.report.formatting import Figures, format_figure, read_figure
from kshot.evaluation.target import Target


def best_baseline(
    baselines: Mapping[str, Figures] | None, metric: str, higher_is_better: bool
) -> tuple[str, Interval] | None:
    """Name and figure of the baseline with the best mean; None if none has a finite one."""
    figures = {name: read_figure(each, metric) for name, each in (baselines or {}).items()}
    finite = [(name, figure) for name, figure in figures.items() if math.isfinite(figure.mean)]
    choose = max if higher_is_better else min
    return choose(finite, key=lambda pair: pair[1].mean) if finite else None


def fatal(report: Mapping[str, Any]) -> list[str]:
    """Names of the checks of the data that found errors, which make a report's figures worthless."""
    findings = (report.get("data_check") or {}).get("findings") or []
    return list(dict.fromkeys(each["check"] for each in findings if each["severity"] == "error"))


def failed(report: Mapping[str, Any]) -> list[str]:
    """Names of the audits, and of the checks of the data, that a report's test figures failed.

    Or a remark that most audits could not be made.
    """
    audits = report.get("audits") or []
    names = [audit["name"] for audit in audits if audit["result"] == "FAILED"]
    names += [f"the check of the data ({name})" for name in fatal(report)]
    return names if names or not audits or trust(audits).trusted else ["no audit, but most could not be made"]


def trust_of(report: Mapping[str, Any]) -> Trust:
    """`trust` in a report's test figures by its audits; none if the check of the data found errors."""
    known = trust(report.get("audits") or [])
    if not (names := fatal(report)):
        return known
    rest = known.sentence.partition(": ")[2]
    return Trust(False, f"not trusted: the check of the data found errors ({', '.join(names)}); {rest}")


def inference_of(report: Mapping[str, Any]) -> str:
    """What the learner's predictions depend on: "inductive", "causal" or "transductive"; empty if it is not known."""
    protocol = report.get("protocol") or {}
    known = {None: "", True: "inductive", False: "transductive"}
    return str(protocol.get("inference") or known[protocol.get("inductive")])


def unlike(report: Mapping[str, Any]) -> list[str]:
    """A sentence if the learner and the baseline that the verdict compares predict under different rules; else none.

    An inductive learner predicts each query from the support set alone. A transductive one sees the other queries of
    the task too, and a causal one those before it: information that the other side of the comparison did not have.
    """
    best = best_baseline(report.get("baselines"), report["metric"], report.get("higher_is_better", True))
    inference = report.get("inference") or {}
    if best is None or not report.get("test"):
        return []
    ours, theirs = inference_of(report), inference.get(best[0], "inductive")
    if not ours or ours == theirs:
        return []
    alike = [name.replace("_", " ") for name, kind in inference.items() if kind == ours and name != "learner"]
    also = f" Like with like is the comparison with {', '.join(alike)}, in the table." if alike else ""
    return [
        f"This comparison is not of like with like: the learner is {ours}, and {best[0].replace('_', ' ')} is "
        f"{theirs}; the one that is not inductive had other queries of the task to learn from.{also}"
    ]


def target_on_test(target: str | None, metric: str, test: Interval) -> str:
    """Whether the test figure meets the target; empty if there is no target, no figure, or another metric."""
    if not target or not math.isfinite(test.mean):
        return ""
    bound, figure = Target.parse(target), test._replace(ci95=test.half_width)
    if bound.metric != metric:
        return ""
    if bound.met(figure):
        return f"The target, {target}, also holds on the test tasks, for the whole interval."
    if bound.missed(figure):
        return f"The test figure misses the target, {target}."
    return f"The target, {target}, is within the interval of the test figure: whether it holds on test tasks is open."


def verdict_of(report: Mapping[str, Any]) -> str:
    """`verdict` of a report as plain values, on the tasks that the baselines were scored on; and `unlike`, if it is."""
    metric, baselines = report["metric"], report.get("baselines") or {}
    failures = report.get("failures") or []  # "baseline knn", or "fold 2: baseline knn"
    missing = list(dict.fromkeys(each["what"].rpartition("baseline ")[2] for each in failures))
    missing = [name for name in missing if not math.isfinite(read_figure(baselines.get(name), metric).mean)]
    sentence = verdict(
        report.get("beside") or report.get("test"),
        baselines,
        metric,
        report.get("higher_is_better", True),
        report.get("paired"),
        failed(report),
        [name for name in missing if name in (report.get("baselines_about") or {})],
    )
    return " ".join([sentence, *unlike(report)])


def verdict(
    test: Figures | None,
    baselines: Mapping[str, Figures] | None,
    metric: str,
    higher_is_better: bool = True,
    paired: Figures | None = None,
    failed: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> str:
    """Compare the learner with the best baseline in a sentence: whether meta-learning was worth its cost.

    A difference is claimed only if it is significant: by the paired difference on the tasks that both were evaluated
    on, its p value corrected for the number of baselines. Without a paired difference, the two 95 % intervals must not
    overlap, which is conservative.

    Args:
        test, baselines: test figures by metric, of the learner and by name of each baseline; None if there are none.
        metric, higher_is_better: metric to compare; higher is better for an accuracy, not for an error.
        paired: name -> the learner's difference to that baseline, from `compare.differences`.
        failed: names of the audits that the test figures failed; nothing is claimed if there are any.
        missing: baselines that gave no figure, which the claim therefore does not cover.

    Example:
        >>> verdict(
        ...     {"accuracy": {"mean": 0.95, "ci95": 0.01, "num_tasks": 600}},
        ...     {"centroid": {"accuracy": {"mean": 0.94, "ci95": 0.01, "num_tasks": 600}}},
        ...     "accuracy",
        ...     paired={"centroid": {"mean": 0.01, "ci95": 0.002, "num_tasks": 600, "p_holm": 1e-9}},
        ... )
        'The learner beats the best baseline without meta-learning by 0.010 ± 0.002 on the same 600 tasks: accuracy ...'
    """
    if not test:
        return "There is no test figure to compare with the baselines."
    if failed:
        return f"The test figure is not to be trusted and supports no claim; it failed: {', '.join(failed)}."
    learner, best = read_figure(test, metric), best_baseline(baselines, metric, higher_is_better)
    if not math.isfinite(learner.mean):
        return f"The learner gave no finite {metric} on the test tasks: it cannot be compared, and should not be used."
    if best is None:
        none = "No baseline gave a finite figure" if baselines or missing else "No baseline was evaluated"
        return f"{none}, so whether meta-learning was worth its cost is not known."
    name, baseline = best
    figures = f"{metric} {format_figure(learner)} against {format_figure(baseline)} ({name.replace('_', ' ')})"
    if paired and name in paired:
        difference, p = read_figure(paired, name), paired[name].get("p_holm")
        significant, conclusive = p is not None and p < LEVEL, math.isfinite(difference.ci95)
        where = f" on the same {difference.sample}"
    else:
        reach = learner.ci95 + baseline.ci95
        difference = Interval(learner.mean - baseline.mean, reach, min(learner.num_tasks, baseline.num_tasks))
        significant = learner.low > baseline.high or learner.high < baseline.low
        conclusive, where = math.isfinite(reach), ""
    names = ", ".join(each.replace("_", " ") for each in missing)
    rest = f" Not compared, because they gave no figure: {names}." if names else ""
    if paired and name in paired and difference.mean == 0 and not conclusive and difference.num_tasks > 1:
        return f"The learner and the best baseline gave the same figure on each of{where[3:]}: {figures}.{rest}"
    if not conclusive:
        few = "There are too few tasks to compare the learner with the best baseline"
        return f"{few}: {figures}, without an interval.{rest}"
    gain = _signed(difference, 1 if higher_is_better else -1)
    if significant:
        beats, by = ("beats", gain) if gain.mean > 0 else ("is worse than", _signed(gain, -1))
        size = format_figure(by)
        return f"The learner {beats} the best baseline without meta-learning by {size}{where}: {figures}.{rest}"
    known = "The simple baseline is as good here, as far as these tasks tell"
    return f"{known}: {figures}; the difference of {format_figure(gain)}{where} is not significant.{rest}"


def _signed(figure: Interval, sign: int) -> Interval:
    """A figure, or with the sign -1 its negative, whose interval is mirrored."""
    return figure._replace(mean=sign * figure.mean, shift=sign * figure.shift)
