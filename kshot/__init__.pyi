from . import data, deciding, evaluation, inner, learners, models, objectives, sources, tasks, testing, training
from .app.auto.command import auto
from .app.execute import run
from .app.sweep.command import sweep
from .app.trained import load
from .deciding.loop import run_until
from .deciding.policies import Budget
from .evaluation.evaluate import evaluate
from .learner import Learner
from .learners.gradient.maml import maml
from .learners.heads.protonet import protonet
from .objectives import Objective
from .tasks.source import TaskSource
from .training.checkpoint import load_state, save_state
from .training.fit import fit
from .training.pretrain import pretrain
from .types import Batch, Task, one_hot

__version__: str

__all__ = [
    "Batch",
    "Budget",
    "Learner",
    "Objective",
    "Task",
    "TaskSource",
    "auto",
    "data",
    "deciding",
    "evaluate",
    "evaluation",
    "fit",
    "inner",
    "learners",
    "load",
    "load_state",
    "maml",
    "models",
    "objectives",
    "one_hot",
    "pretrain",
    "protonet",
    "run",
    "run_until",
    "save_state",
    "sources",
    "sweep",
    "tasks",
    "testing",
    "training",
]
