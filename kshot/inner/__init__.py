from kshot.inner.adam_variants import Adamax, NAdam, RAdam
from kshot.inner.adaptive_rules import ASGD, Adadelta, Adagrad, Rprop
from kshot.inner.evolution import Evolution, zero_order
from kshot.inner.implicit import Implicit, ImplicitRoot
from kshot.inner.learned_rules import Alfa, CoordinateLSTM, CoordinateMLP, Curvature, GatedRule, Kronecker
from kshot.inner.per_parameter import LearnedRate, adaptable_params
from kshot.inner.rules import SGD, Adam, AdamW, RMSprop, UpdateRule
from kshot.inner.solvers import Annealed, FirstOrder, InnerSolver, Truncated, Unrolled
from kshot.inner.transforms import Accumulate, Chain, ClipNorm, ClipValue, Transform
from kshot.inner.unrolling import trajectory, unroll

__all__ = [
    "ASGD",
    "SGD",
    "Accumulate",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Alfa",
    "Annealed",
    "Chain",
    "ClipNorm",
    "ClipValue",
    "CoordinateLSTM",
    "CoordinateMLP",
    "Curvature",
    "Evolution",
    "FirstOrder",
    "GatedRule",
    "Implicit",
    "ImplicitRoot",
    "InnerSolver",
    "Kronecker",
    "LearnedRate",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Transform",
    "Truncated",
    "Unrolled",
    "UpdateRule",
    "adaptable_params",
    "trajectory",
    "unroll",
    "zero_order",
]
