from kshot.inner.learned_rules import Alfa, CoordinateLSTM, CoordinateMLP, Curvature, GatedRule
from kshot.inner.per_parameter import LearnedRate, adaptable_params
from kshot.inner.rules import SGD, Accumulate, Adam, AdamW, Chain, ClipNorm, RMSprop, Transform, UpdateRule
from kshot.inner.solvers import Annealed, FirstOrder, Implicit, InnerSolver, Truncated, Unrolled
from kshot.inner.unrolling import trajectory, unroll

__all__ = [
    "SGD",
    "Accumulate",
    "Adam",
    "AdamW",
    "Alfa",
    "Annealed",
    "Chain",
    "ClipNorm",
    "CoordinateLSTM",
    "CoordinateMLP",
    "Curvature",
    "FirstOrder",
    "GatedRule",
    "Implicit",
    "InnerSolver",
    "LearnedRate",
    "RMSprop",
    "Transform",
    "Truncated",
    "Unrolled",
    "UpdateRule",
    "adaptable_params",
    "trajectory",
    "unroll",
]
