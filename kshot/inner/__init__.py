from kshot.inner.implicit import Implicit
from kshot.inner.per_parameter import adaptable_params
from kshot.inner.rates import LearnedRate
from kshot.inner.rules import SGD, Adam, AdamW, RMSprop, UpdateRule
from kshot.inner.solvers import FirstOrder, InnerSolver, Truncated, Unrolled
from kshot.inner.transforms import Accumulate, Chain, ClipNorm, Transform
from kshot.inner.unrolling import trajectory, unroll

__all__ = [
    "SGD",
    "Accumulate",
    "Adam",
    "AdamW",
    "Chain",
    "ClipNorm",
    "FirstOrder",
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
