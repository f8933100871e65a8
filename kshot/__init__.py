"""kshot: meta-learning for real tasks. The public names, nothing else."""

from kshot import models, objectives, tasks
from kshot.deciding.loop import run_until
from kshot.evaluation.evaluate import evaluate
from kshot.learner import Learner
from kshot.learners.baselines import fine_tune, from_scratch, nearest_centroid
from kshot.learners.gradient import maml
from kshot.learners.heads import protonet
from kshot.objectives import Objective
from kshot.training.fit import fit
from kshot.training.pretrain import pretrain
from kshot.types import Batch, Task

__all__ = [
    "Batch",
    "Learner",
    "Objective",
    "Task",
    "evaluate",
    "fine_tune",
    "fit",
    "from_scratch",
    "maml",
    "models",
    "nearest_centroid",
    "objectives",
    "pretrain",
    "protonet",
    "run_until",
    "tasks",
]
