"""Runs in Weights & Biases: by default offline, in files that `wandb sync` sends."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kshot.app.tracking.tracker import Plain, TrackedRun, Tracker, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def wandb(run: TrackedRun, *, project: str = "kshot", mode: Literal["offline", "online"] = "offline") -> Tracker:
    """Log to Weights & Biases.

    Args:
        run: supplied by the run.
        project: name of the project.
        mode: "offline" writes files in the run folder, for `wandb sync`; "online" sends everything at once, which
            takes an account (`wandb login`).
    """
    require("wandb")
    return _WandB(run, project, mode)


class _WandB(Tracker):
    def __init__(self, run: TrackedRun, project: str, mode: Literal["offline", "online"]) -> None:
        import wandb

        self.id, self.before = run.id or secrets.token_hex(4), run.pretrain_steps
        self.run = wandb.init(
            project=project,
            name=run.name,
            id=self.id,
            resume="allow" if mode == "online" else None,  # offline runs of one id are joined when they are sent
            dir=run.folder,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", init_timeout=30, disable_git=True, save_code=False),
        )
        self.run.define_metric("*", step_metric="step")

    def params(self, values: Mapping[str, Plain]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)

    def metrics(self, values: Mapping[str, float], step: int, time: float) -> None:
        pretraining = all(name.startswith("pretrain/") for name in values)
        count = step if pretraining else self.before + step  # W&B wants one count, and joins what has the same
        self.run.log({**values, "step": step}, step=count)

    def report(self, folder: Path, figures: Mapping[str, Figure]) -> None:
        for name in ("report.html", "report.json"):
            self.run.save(folder / name, base_path=folder, policy="now")

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)
