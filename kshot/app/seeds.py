"""`kshot run --seeds`: a run file with several seeds, in a folder each, and a common report."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from kshot.app.environment import environment
from kshot.app.folder import RunFolder
from kshot.app.parts import audits_of, failures_of, run_parts, write_common_report
from kshot.app.spec import Spec
from kshot.evaluation.compare import differences, pooled
from kshot.evaluation.per_task import Scores, read_tasks
from kshot.files import owned


def parse_seeds(text: str) -> list[int]:
    """Parse seeds; ValueError unless they are two or more different integers from 0.

    Example:
        >>> parse_seeds("0,1,2")
        [0, 1, 2]
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds takes two or more different integers from 0, as in --seeds 0,1,2; got {text!r}")
    return seeds


def run_seeds(
    spec: Spec, out: Path, seeds: list[int], *, resume: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Execute a run file once for each seed, in the folders out/seed-0, out/seed-1…, and report on all of them.

    Seeds differ in their initial weights and training tasks; validation and test episodes are the same. With `resume`,
    finished seeds are not repeated. Raises ValueError as `run`.
    """
    parts = {f"seed-{seed}": (f"seed {seed}", spec.model_copy(update={"seed": seed})) for seed in seeds}
    with owned(out):
        reports = run_parts(out, parts, resume=resume, console=console)
        return write_common_report(out, _report(out, seeds, reports))


def _report(out: Path, seeds: list[int], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of all seeds: like that of one, with intervals over seeds."""
    first = reports[0]
    tested = [(seed, report) for seed, report in zip(seeds, reports) if report.get("test")]
    complete = len(tested) == len(seeds)
    outcomes = [report["outcome"] for report in reports]
    num_met = outcomes.count("TARGET_MET")
    met = num_met == len(seeds)
    sentence = f"The target is met by {num_met} of {len(seeds)} seeds."
    reason = f"{len(seeds) - len(tested)} seeds gave no usable round, so there is no common figure"
    tables = [read_tasks(RunFolder(out / f"seed-{seed}").tasks) for seed, _ in tested] if complete else []
    names = [name for name in first["baselines"] if all(name in rest for _, rest in tables)] if complete else []
    others: dict[str, list[Scores]] = {name: [table[1][name] for table in tables] for name in names}
    return first | {
        "kshot": version("kshot"),
        "command": f"kshot run {out / f'seed-{seeds[0]}' / 'spec.yaml'} --seeds {','.join(map(str, seeds))}",
        "outcome": "TARGET_MET" if met else next(outcome for outcome in outcomes if outcome != "TARGET_MET"),
        "sentence": "The target is met on validation tasks by every seed." if met else sentence,
        "reason": "" if complete else reason,
        "rounds": [],
        "best_round": None,
        "val": pooled([report["val"] for report in reports]) if complete else None,
        "test": pooled([report["test"] for report in reports]) if complete else None,
        "beside": pooled([report["beside"] for report in reports]) if complete and first.get("beside") else None,
        "baselines": {name: pooled([report["baselines"][name] for report in reports]) for name in names},
        "paired": differences([table[0] for table in tables], others, first["metric"]) if complete else {},
        "audits": audits_of("seed", seeds, reports),
        "trusted": all(report["trusted"] for report in reports) if complete else None,
        "failures": failures_of("seed", seeds, reports),
        "tried": _tried(seeds, reports),
        "worst_tasks": [],
        "by_class": None,
        "by_label": None,
        "by_unit": {},
        "pooled": {},
        "shots": [],
        "calibration": None,
        "coverage": None,
        "seeds": [
            {"seed": seed, "seconds": report["timing"].get("seconds")}
            | {key: report.get(key) for key in ("test", "best_round", "outcome")}
            for seed, report in zip(seeds, reports)
        ],
        "protocol": first["protocol"] | {"seed": seeds, "seeds": len(seeds)},
        "environment": environment(),
        "timing": {"seconds": sum(report["timing"].get("seconds") or 0.0 for report in reports)},
    }


def _tried(seeds: list[int], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What the last seed counted, if that is more than these seeds, which are all in the figure."""
    counts: dict[str, Any] = reports[-1].get("tried") or {}
    return counts if counts.get("runs", 1) > len(seeds) else {}
