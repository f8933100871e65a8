"""Runs in MLflow: on a server, or in a database that `mlflow ui` shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kshot.app.tracking.tracker import Plain, TrackedRun, Tracker, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 500
"""Characters of a parameter, of which older servers take no more."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Environment variables of MLflow, unless they are set: by default a server that is away holds up a run for minutes."""


def mlflow(run: TrackedRun, *, experiment: str = "kshot", uri: str | None = None) -> Tracker:
    """Log to MLflow.

    Args:
        run: supplied by the run.
        experiment: name of the experiment, which is made if there is none.
        uri: of the tracking server or database, such as `http://host:5000` or `sqlite:///mlflow.db`; by default
            `MLFLOW_TRACKING_URI`, or what MLflow takes without it.
    """
    require("mlflow")
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    return _MLflow(run, experiment, uri)


class _MLflow(Tracker):
    def __init__(self, run: TrackedRun, experiment: str, uri: str | None) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        if run.id is None:
            known = self.client.get_experiment_by_name(experiment)
            number = known.experiment_id if known else self.client.create_experiment(experiment)
            self.id = self.client.create_run(number, run_name=run.name).info.run_id
        else:
            self.id = run.id
            self.client.update_run(self.id, status="RUNNING")

    def params(self, values: Mapping[str, Plain]) -> None:
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(self.id).data.params
        texts = {name: str(value)[:LONGEST] for name, value in values.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        # MLflow keeps a parameter as it is; what a resumed run changed, such as its budget, becomes a tag.
        changed = [RunTag(f"resumed.{name}", text) for name, text in texts.items() if known.get(name, text) != text]
        for start in range(0, max(len(new), 1), 100):  # which is as many as it takes at once
            self.client.log_batch(self.id, params=new[start : start + 100], tags=[] if start else changed)

    def metrics(self, values: Mapping[str, float], step: int, time: float) -> None:
        from mlflow.entities import Metric

        self.client.log_batch(self.id, metrics=[Metric(name, x, int(1000 * time), step) for name, x in values.items()])

    def report(self, folder: Path, figures: Mapping[str, Figure]) -> None:
        for name in ("report.html", "report.json"):
            self.client.log_artifact(self.id, str(folder / name))

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")
