from . import inner, learners, models, objectives, tasks
from .deciding.loop import run_until
from .deciding.policies import Budget
from .evaluation.compare import compare, paired_difference
from .evaluation.cost import cost
from .evaluation.evaluate import evaluate
from .evaluation.intervals import over_seeds
from .evaluation.shots import over_shots
from .learner import Learner
from .learners.amortised import attentive_np, cnp, tanp, tnp_d
from .learners.baselines import fine_tune, from_scratch, nearest_centroid
from .learners.closed_form import logistic_regression, metaoptnet, r2d2
from .learners.context import cavia
from .learners.feat import feat
from .learners.film import cnaps
from .learners.finetuned import baseline_pp, pmf
from .learners.fold_in import fold_in
from .learners.frn import frn
from .learners.generating import generate
from .learners.gradient import anil, boil, fomaml, maml, melu, reptile
from .learners.heads import protonet
from .learners.implicit import imaml
from .learners.learned_rules import alfa, learned_optimizer, meta_curvature, meta_sgd
from .learners.maml_pp import maml_pp
from .learners.metric import matching_net, simpleshot
from .learners.plda import plda
from .learners.reading import dynamic_evaluation
from .learners.relation import relation_net
from .learners.tabular import prior_fitted
from .learners.task_heads import proto_maml, unicorn_maml
from .learners.transductive import laplacian_shot, transductive_fine_tune
from .learners.warp import t_net, warp_maml
from .objectives import Objective
from .training.fit import fit
from .training.pretrain import fit_centre, pretrain
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
    "baseline_pp",
    "boil",
    "cavia",
    "cnaps",
    "cnp",
    "compare",
    "cost",
    "dynamic_evaluation",
    "evaluate",
    "feat",
    "fine_tune",
    "fit",
    "fit_centre",
    "fold_in",
    "fomaml",
    "frn",
    "from_scratch",
    "generate",
    "imaml",
    "inner",
    "laplacian_shot",
    "learned_optimizer",
    "learners",
    "logistic_regression",
    "maml",
    "maml_pp",
    "matching_net",
    "melu",
    "meta_curvature",
    "meta_sgd",
    "metaoptnet",
    "models",
    "nearest_centroid",
    "objectives",
    "over_seeds",
    "over_shots",
    "paired_difference",
    "plda",
    "pmf",
    "pretrain",
    "prior_fitted",
    "proto_maml",
    "protonet",
    "r2d2",
    "relation_net",
    "reptile",
    "run_until",
    "simpleshot",
    "t_net",
    "tanp",
    "tasks",
    "tnp_d",
    "transductive_fine_tune",
    "unicorn_maml",
    "warp_maml",
]
