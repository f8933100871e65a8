from kshot.inner.implicit import Implicit
from kshot.inner.learned_rules import Alfa, CoordinateLSTM, CoordinateMLP, Curvature, GatedRule
from kshot.inner.per_parameter import adaptable_params
from kshot.inner.rates import LearnedRate
from kshot.inner.rules import SGD, Adam, AdamW, RMSprop, UpdateRule
from kshot.inner.solvers import Annealed, FirstOrder, InnerSolver, Truncated, Unrolled
from kshot.inner.transforms import Accumulate, Chain, ClipNorm, Transform
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
