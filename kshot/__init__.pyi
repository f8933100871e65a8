from . import inner, learners, models, objectives, tasks
from .deciding.loop import run_until
from .deciding.policies import Budget
from .evaluation.evaluate import evaluate
from .learner import Learner
from .learners.amortised import attentive_np, cnp, tnp_d
from .learners.baselines import fine_tune, from_scratch, nearest_centroid
from .learners.context import cavia
from .learners.film import cnaps
from .learners.gradient import anil, boil, fomaml, maml, reptile
from .learners.heads import protonet
from .learners.implicit import imaml
from .learners.learned_rules import alfa, learned_optimizer, meta_curvature, meta_sgd
from .learners.maml_pp import maml_pp
from .learners.tabular import prior_fitted
from .learners.task_heads import proto_maml, unicorn_maml
from .learners.warp import t_net, warp_maml
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
    "alfa",
    "anil",
    "attentive_np",
    "boil",
    "cavia",
    "cnaps",
    "cnp",
    "evaluate",
    "fine_tune",
    "fit",
    "fomaml",
    "from_scratch",
    "imaml",
    "inner",
    "learned_optimizer",
    "learners",
    "maml",
    "maml_pp",
    "meta_curvature",
    "meta_sgd",
    "models",
    "nearest_centroid",
    "objectives",
    "pretrain",
    "prior_fitted",
    "proto_maml",
    "protonet",
    "reptile",
    "run_until",
    "t_net",
    "tasks",
    "tnp_d",
    "unicorn_maml",
    "warp_maml",
]
