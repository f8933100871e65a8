from kshot.models.backbones import conv4, mlp
from kshot.models.dropblock import DropBlock
from kshot.models.encoder import encoder
from kshot.models.language import causal_lm, language_model
from kshot.models.ratings import RatingModel, factorisation, rating_mlp, two_tower
from kshot.models.resnet import resnet12
from kshot.models.spread import Spread

__all__ = [
    "DropBlock",
    "RatingModel",
    "Spread",
    "causal_lm",
    "conv4",
    "encoder",
    "factorisation",
    "language_model",
    "mlp",
    "rating_mlp",
    "resnet12",
    "two_tower",
]
