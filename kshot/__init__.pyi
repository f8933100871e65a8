from . import data, inner, learners, models, objectives, sources, tasks
from .deciding.loop import run_until
from .deciding.policies import Budget
from .evaluation.compare import compare, paired_difference
from .evaluation.cost import cost
from .evaluation.evaluate import evaluate
from .evaluation.intervals import over_seeds
from .evaluation.shots import over_shots
from .learner import Learner
from .learners.amortised.cnaps import cnaps
from .learners.amortised.neural_processes import attentive_np, cnp, tanp, tnp_d
from .learners.amortised.prior_fitted import prior_fitted
from .learners.baselines import fine_tune, from_scratch, nearest_centroid
from .learners.generate import generate
from .learners.gradient.cavia import cavia
from .learners.gradient.dynamic_evaluation import dynamic_evaluation
from .learners.gradient.imaml import imaml
from .learners.gradient.learned_optimizers import alfa, learned_optimizer, meta_curvature, meta_sgd
from .learners.gradient.maml import anil, boil, fomaml, maml, reptile
from .learners.gradient.maml_pp import maml_pp
from .learners.gradient.proto_maml import proto_maml, unicorn_maml
from .learners.gradient.transductive_fine_tuning import transductive_fine_tune
from .learners.gradient.warp import t_net, warp_maml
from .learners.heads.closed_form import logistic_regression, metaoptnet, r2d2
from .learners.heads.feat import feat
from .learners.heads.finetuned import baseline_pp, pmf
from .learners.heads.frn import frn
from .learners.heads.laplacian_shot import laplacian_shot
from .learners.heads.matching_net import matching_net
from .learners.heads.plda import plda
from .learners.heads.protonet import protonet
from .learners.heads.relation import relation_net
from .learners.heads.simpleshot import simpleshot
from .learners.ratings.alpaca import alpaca
from .learners.ratings.melu import melu
from .objectives import Objective
from .training.fit import fit
from .training.pretrain import fit_feature_statistics, pretrain
from .types import Batch, Task

__all__ = [
    "Batch",
    "Budget",
    "Learner",
    "Objective",
    "Task",
    "alfa",
    "alpaca",
    "anil",
    "attentive_np",
    "baseline_pp",
    "boil",
    "cavia",
    "cnaps",
    "cnp",
    "compare",
    "cost",
    "data",
    "dynamic_evaluation",
    "evaluate",
    "feat",
    "fine_tune",
    "fit",
    "fit_feature_statistics",
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
    "sources",
    "t_net",
    "tanp",
    "tasks",
    "tnp_d",
    "transductive_fine_tune",
    "unicorn_maml",
    "warp_maml",
]
