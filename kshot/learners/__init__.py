from kshot.learners.baselines import SupportMean, fine_tune, from_scratch, nearest_centroid
from kshot.learners.gradient import GradientLearner, maml
from kshot.learners.heads import HeadLearner, protonet

__all__ = [
    "GradientLearner",
    "HeadLearner",
    "SupportMean",
    "fine_tune",
    "from_scratch",
    "maml",
    "nearest_centroid",
    "protonet",
]
