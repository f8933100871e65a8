from .amortised.caml import caml
from .amortised.cnaps import Mahalanobis, cnaps
from .amortised.neural_processes import attentive_np, cnp, tanp, tnp_d
from .amortised.prior_fitted import prior_fitted
from .baselines.simple import SupportMean, fine_tune, from_scratch, nearest_centroid
from .choosing.choose import choose
from .choosing.mixture import mixture
from .generation import generate
from .gradient.cavia import cavia
from .gradient.dynamic_evaluation import dynamic_evaluation
from .gradient.gradient_learner import GradientLearner
from .gradient.imaml import imaml
from .gradient.learned_optimizers import alfa, learned_optimizer, meta_curvature, meta_kfo, meta_sgd
from .gradient.maml import anil, boil, fomaml, maml, reptile
from .gradient.maml_pp import maml_pp
from .gradient.proto_maml import proto_maml, unicorn_maml
from .gradient.transductive_fine_tuning import transductive_fine_tune
from .gradient.warp import t_net, warp_maml, with_warps
from .heads.bd_cspn import bd_cspn
from .heads.closed_form import logistic_regression, metaoptnet, r2d2
from .heads.deep_bdc import deep_bdc
from .heads.feat import feat
from .heads.finetuned import baseline_pp, pmf
from .heads.frn import frn
from .heads.head import Head
from .heads.head_learner import HeadLearner
from .heads.laplacian_shot import laplacian_shot
from .heads.matching_net import matching_net
from .heads.names import named_means, tip_adapter
from .heads.plda import plda
from .heads.probe import probe
from .heads.protonet import protonet
from .heads.pt_map import pt_map
from .heads.relation import relation_net
from .heads.simpleshot import simpleshot
from .heads.tim import tim
from .pooling.boosted_residual import boosted_residual
from .pooling.partial_pooling import partial_pooling
from .ratings.alpaca import alpaca
from .ratings.item_similarity import item_similarity
from .ratings.melu import melu
from .series.ensemble import forecast_ensemble

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
    "bd_cspn",
    "boil",
    "boosted_residual",
    "caml",
    "cavia",
    "choose",
    "cnaps",
    "cnp",
    "deep_bdc",
    "dynamic_evaluation",
    "feat",
    "fine_tune",
    "fomaml",
    "forecast_ensemble",
    "frn",
    "from_scratch",
    "generate",
    "imaml",
    "item_similarity",
    "laplacian_shot",
    "learned_optimizer",
    "logistic_regression",
    "maml",
    "maml_pp",
    "matching_net",
    "melu",
    "meta_curvature",
    "meta_kfo",
    "meta_sgd",
    "metaoptnet",
    "mixture",
    "named_means",
    "nearest_centroid",
    "partial_pooling",
    "plda",
    "pmf",
    "prior_fitted",
    "probe",
    "proto_maml",
    "protonet",
    "pt_map",
    "r2d2",
    "relation_net",
    "reptile",
    "simpleshot",
    "t_net",
    "tanp",
    "tim",
    "tip_adapter",
    "tnp_d",
    "transductive_fine_tune",
    "unicorn_maml",
    "warp_maml",
    "with_warps",
]
