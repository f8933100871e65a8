"""Parts of reports, for tests of pages and figures."""

from typing import Any

import torch

from kshot import Batch, Task
from kshot.evaluation.report import task_pictures


def of(mean: float | None, ci95: float | None = 0.01, tasks: int = 100, metric: str = "accuracy") -> dict[str, Any]:
    return {metric: {"mean": mean, "ci95": ci95, "num_tasks": tasks}}


def round_entry(number: int, mean: float | None, action: str = "continue", **decision: Any) -> dict[str, Any]:
    return {
        "number": number,
        "step": 100 * number,
        "train_loss": 1 / number,
        "val": {} if mean is None else of(mean),
        "settings": {"outer_lr": 1e-3 if number < 3 else 3e-4, "clip": 10.0},
        "seconds": 60.0 * number,
        "checkpoint": f"round-{number:04d}",
        "diverged": "the loss is nan" if mean is None else None,
        "decision": {"action": action, "reason": f"reason {number}"} | decision,
    }


ROUNDS = [
    round_entry(1, 0.7),
    round_entry(2, 0.6, "change", settings={"outer_lr": 3e-4}),
    round_entry(3, None, "rollback", to_round=1),
    round_entry(4, 0.93, "stop", outcome="TARGET_MET"),
]
EVENTS = [{"kind": "train", "step": 10 * i, "loss": 1 / i} for i in range(1, 40)] + [{"kind": "resumed"}]


def image_task(ways: int = 3, shots: int = 1, queries: int = 2, channels: int = 1) -> Task:
    def batch(each: int) -> Batch:
        labels = torch.arange(ways).repeat(each)
        return Batch.of(torch.linspace(0, 1, len(labels) * channels * 64).view(-1, channels, 8, 8), labels, ways=ways)

    return Task(batch(shots), batch(queries))


def image_figure() -> Any:
    task = image_task()
    return task_pictures.classification_examples([task_pictures.Example(task, task.query.targets)])
