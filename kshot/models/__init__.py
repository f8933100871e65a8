from kshot.models.backbones import conv4, mlp

__all__ = ["conv4", "mlp"]
