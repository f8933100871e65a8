from kshot.models.backbones import conv4, mlp, resnet12
from kshot.models.encoder import encoder
from kshot.models.language import causal_lm, language_model
from kshot.models.layers import DropBlock, Spread
from kshot.models.ratings import RatingModel, factorisation, rating_mlp, two_tower
from kshot.models.segmenter import segmenter
from kshot.models.select import select

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
    "segmenter",
    "select",
    "two_tower",
]
