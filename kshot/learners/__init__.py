from kshot.learners.amortised import attentive_np, cnp, tnp_d
from kshot.learners.baselines import SupportMean, fine_tune, from_scratch, nearest_centroid
from kshot.learners.context import cavia
from kshot.learners.film import Mahalanobis, cnaps
from kshot.learners.gradient import GradientLearner, anil, boil, fomaml, maml, reptile
from kshot.learners.heads import HeadLearner, protonet
from kshot.learners.implicit import imaml
from kshot.learners.learned_rules import alfa, learned_optimizer, meta_curvature, meta_sgd
from kshot.learners.maml_pp import maml_pp
from kshot.learners.tabular import prior_fitted
from kshot.learners.task_heads import proto_maml, unicorn_maml
from kshot.learners.warp import t_net, warp_maml, with_warps

__all__ = [
    "GradientLearner",
    "HeadLearner",
    "Mahalanobis",
    "SupportMean",
    "alfa",
    "anil",
    "attentive_np",
    "boil",
    "cavia",
    "cnaps",
    "cnp",
    "fine_tune",
    "fomaml",
    "from_scratch",
    "imaml",
    "learned_optimizer",
    "maml",
    "maml_pp",
    "meta_curvature",
    "meta_sgd",
    "nearest_centroid",
    "prior_fitted",
    "proto_maml",
    "protonet",
    "reptile",
    "t_net",
    "tnp_d",
    "unicorn_maml",
    "warp_maml",
    "with_warps",
]
