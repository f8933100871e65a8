from kshot.models.backbones import conv4, mlp
from kshot.models.dropblock import DropBlock
from kshot.models.ratings import RatingModel, factorisation, rating_mlp, two_tower
from kshot.models.resnet import resnet12
from kshot.models.spread import Spread

__all__ = [
    "DropBlock",
    "RatingModel",
    "Spread",
    "conv4",
    "factorisation",
    "mlp",
    "rating_mlp",
    "resnet12",
    "two_tower",
]
