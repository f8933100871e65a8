from . import learners, models, objectives, tasks
from .deciding.loop import run_until
from .deciding.policies import Budget
from .evaluation.evaluate import evaluate
from .learner import Learner
from .learners.baselines import fine_tune, from_scratch, nearest_centroid
from .learners.gradient import maml
from .learners.heads import protonet
from .objectives import Objective
from .training.fit import fit
from .training.pretrain import pretrain
from .types import Batch, Task

__all__ = [
    "Batch",
    "Budget",
    "Learner",
    "Objective",
    "Task",
    "evaluate",
    "fine_tune",
    "fit",
    "from_scratch",
    "learners",
    "maml",
    "models",
    "nearest_centroid",
    "objectives",
    "pretrain",
    "protonet",
    "run_until",
    "tasks",
]
