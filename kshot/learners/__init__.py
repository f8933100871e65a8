from kshot.learners.baselines import SupportMean, fine_tune, from_scratch, nearest_centroid
from kshot.learners.closed_form import r2d2
from kshot.learners.context import cavia
from kshot.learners.gradient import GradientLearner, anil, boil, fomaml, maml, reptile
from kshot.learners.heads import HeadLearner, protonet
from kshot.learners.implicit import imaml
from kshot.learners.learned_rules import alfa, learned_optimizer, meta_curvature, meta_sgd
from kshot.learners.maml_pp import maml_pp
from kshot.learners.metric import simpleshot
from kshot.learners.task_heads import proto_maml, unicorn_maml
from kshot.learners.warp import t_net, warp_maml, with_warps

__all__ = [
    "GradientLearner",
    "HeadLearner",
    "SupportMean",
    "alfa",
    "anil",
    "boil",
    "cavia",
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
    "proto_maml",
    "protonet",
    "r2d2",
    "reptile",
    "simpleshot",
    "t_net",
    "unicorn_maml",
    "warp_maml",
    "with_warps",
]
