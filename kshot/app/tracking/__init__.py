"""Experiment trackers: what the log of a run says is also written where other runs of a user are compared.

`tracker.py` is what a tracker does, `follow.py` sends it the events of a run, and there is one module for each library,
which is imported only when a run file names it.
"""

from kshot.app.tracking.to_mlflow import mlflow
from kshot.app.tracking.to_tensorboard import tensorboard
from kshot.app.tracking.to_wandb import wandb
from kshot.app.tracking.tracker import TrackedRun, Tracker

__all__ = ["TrackedRun", "Tracker", "mlflow", "tensorboard", "wandb"]
