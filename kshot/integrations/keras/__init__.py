"""Keras 3 models as base models, and meta-trained weights back to Keras with any backend.

`as_module` makes a `torch.nn.Module` of a Keras model, which every learner takes. `export_keras` writes what a learner
has learned to a file that Keras opens with TensorFlow, JAX or torch.
"""

from kshot.integrations.keras.export import export_keras
from kshot.integrations.keras.module import KerasModule, as_module

__all__ = ["KerasModule", "as_module", "export_keras"]
