"""The outer loop: meta-gradients, meta-training, pretraining and checkpoints."""

from kshot.training.checkpoint import Checkpoints, load_state, save_state
from kshot.training.closed_form import fit_closed_form, fit_feature_statistics
from kshot.training.fit import Diverged, Progress, fit
from kshot.training.pretrain import pretrain
from kshot.training.shards import shard_frozen
from kshot.training.step import meta_gradient

__all__ = [
    "Checkpoints",
    "Diverged",
    "Progress",
    "fit",
    "fit_closed_form",
    "fit_feature_statistics",
    "load_state",
    "meta_gradient",
    "pretrain",
    "save_state",
    "shard_frozen",
]
