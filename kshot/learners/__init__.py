from kshot.learners.amortised import attentive_np, cnp, tanp, tnp_d
from kshot.learners.baselines import SupportMean, fine_tune, from_scratch, nearest_centroid
from kshot.learners.closed_form import logistic_regression, metaoptnet, r2d2
from kshot.learners.context import cavia
from kshot.learners.feat import feat
from kshot.learners.film import Mahalanobis, cnaps
from kshot.learners.finetuned import baseline_pp, pmf
from kshot.learners.fold_in import fold_in
from kshot.learners.frn import frn
from kshot.learners.gradient import GradientLearner, anil, boil, fomaml, maml, melu, reptile
from kshot.learners.heads import HeadLearner, protonet
from kshot.learners.implicit import imaml
from kshot.learners.learned_rules import alfa, learned_optimizer, meta_curvature, meta_sgd
from kshot.learners.maml_pp import maml_pp
from kshot.learners.metric import matching_net, simpleshot
from kshot.learners.plda import plda
from kshot.learners.reading import dynamic_evaluation
from kshot.learners.relation import relation_net
from kshot.learners.tabular import prior_fitted
from kshot.learners.task_heads import proto_maml, unicorn_maml
from kshot.learners.transductive import laplacian_shot, transductive_fine_tune
from kshot.learners.warp import t_net, warp_maml, with_warps

__all__ = [
    "GradientLearner",
    "HeadLearner",
    "Mahalanobis",
    "SupportMean",
    "alfa",
    "anil",
    "attentive_np",
    "baseline_pp",
    "boil",
    "cavia",
    "cnaps",
    "cnp",
    "dynamic_evaluation",
    "feat",
    "fine_tune",
    "fold_in",
    "fomaml",
    "frn",
    "from_scratch",
    "imaml",
    "laplacian_shot",
    "learned_optimizer",
    "logistic_regression",
    "maml",
    "maml_pp",
    "matching_net",
    "melu",
    "meta_curvature",
    "meta_sgd",
    "metaoptnet",
    "nearest_centroid",
    "plda",
    "pmf",
    "prior_fitted",
    "proto_maml",
    "protonet",
    "r2d2",
    "relation_net",
    "reptile",
    "simpleshot",
    "t_net",
    "tanp",
    "tnp_d",
    "transductive_fine_tune",
    "unicorn_maml",
    "warp_maml",
    "with_warps",
]
