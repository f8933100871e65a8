"""Many inputs as a few: their principal components.

Shape legend: n rows, F inputs, C components.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.inner.precision import widest_float

TABLE = 256
"""Number of inputs above which they are no columns of a table, but pixels or the features of an encoder."""
COMPONENTS = 64
"""Number of principal components that stand for so many inputs."""


class PrincipalComponents(nn.Module):
    r"""The first principal components of standardised inputs, $V^\top (x - \bar x) / s$, from (n, F) to (n, C).

    $V$ are the eigenvectors of the inputs' correlations, all divided by the standard deviation of the first component:
    components keep their spread, so that an equal prior of their coefficients is one of the inputs' coefficients.
    A component in which the training rows do not differ is 0. Until `measure` is called they are the first inputs.

    Args:
        inputs: F.
    """

    centre: Tensor
    directions: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("directions", torch.eye(inputs, COMPONENTS))

    def forward(self, x_nF: Tensor) -> Tensor:
        """The components (n, C), computed in the widest type."""
        wide = widest_float(x_nF.device)
        return ((x_nF.to(wide) - self.centre.to(wide)) @ self.directions.to(wide)).to(x_nF.dtype)

    def measure(self, x_nF: Tensor) -> None:
        """Set the constants, in place, from training rows; an input that is the same in all of them counts nothing."""
        mean_F, scale_F = x_nF.mean(0), x_nF.std(0, correction=0)
        still_F = scale_F <= 1e-6 * x_nF.abs().amax(0).clamp_min(1e-6)
        inverse_F = torch.where(still_F, 0.0, 1 / scale_F)
        u_nF = (x_nF - mean_F) * inverse_F
        variance_F, vector_FF = torch.linalg.eigh(u_nF.mT @ u_nF / len(u_nF))
        vector_FC, variance_C = vector_FF.flip(1)[:, :COMPONENTS], variance_F.flip(0)[:COMPONENTS]
        vector_FC = vector_FC * (variance_C > 1e-10 * variance_C[0])  # the others are any directions, as of few rows
        largest_1C = vector_FC.gather(0, vector_FC.abs().argmax(0, keepdim=True))  # its sign is +, to be unique
        self.centre.copy_(mean_F)
        unit = variance_C[0].clamp_min(1e-12).sqrt()
        self.directions.copy_(inverse_F[:, None] * vector_FC * largest_1C.sign() / unit)
