from kshot.learners.amortised.cnaps import Mahalanobis, cnaps
from kshot.learners.amortised.neural_processes import attentive_np, cnp, tanp, tnp_d
from kshot.learners.amortised.prior_fitted import prior_fitted
from kshot.learners.baselines import SupportMean, fine_tune, from_scratch, nearest_centroid
from kshot.learners.generate import generate
from kshot.learners.gradient.cavia import cavia
from kshot.learners.gradient.dynamic_evaluation import dynamic_evaluation
from kshot.learners.gradient.imaml import imaml
from kshot.learners.gradient.learned_optimizers import alfa, learned_optimizer, meta_curvature, meta_sgd
from kshot.learners.gradient.maml import GradientLearner, anil, boil, fomaml, maml, melu, reptile
from kshot.learners.gradient.maml_pp import maml_pp
from kshot.learners.gradient.proto_maml import proto_maml, unicorn_maml
from kshot.learners.gradient.warp import t_net, warp_maml, with_warps
from kshot.learners.heads.closed_form import logistic_regression, metaoptnet, r2d2
from kshot.learners.heads.feat import feat
from kshot.learners.heads.finetuned import baseline_pp, pmf
from kshot.learners.heads.frn import frn
from kshot.learners.heads.metric import matching_net, simpleshot
from kshot.learners.heads.plda import plda
from kshot.learners.heads.protonet import Head, HeadLearner, protonet
from kshot.learners.heads.relation import relation_net
from kshot.learners.heads.transductive import laplacian_shot, transductive_fine_tune
from kshot.learners.ratings.alpaca import alpaca

__all__ = [
    "GradientLearner",
    "Head",
    "HeadLearner",
    "Mahalanobis",
    "SupportMean",
    "alfa",
    "alpaca",
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
    "fomaml",
    "frn",
    "from_scratch",
    "generate",
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
