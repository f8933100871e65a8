"""Features of a table's rows: linear, piecewise linear, and the prediction of what groups share.

Shape legend: n rows, F inputs, J knots, P features of the mean, D features of a group's deviation, K outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LINEAR_ONLY = 24
"""Number of inputs above which groups deviate from what they share in linear features only."""


class Basis(nn.Module):
    r"""Features of rows (n, F): $z(x)$ for what groups share, and $\phi(x)$ for how a group deviates from it.

    $$ z(x) = (1, x, h(x)), \qquad \phi(x) = (1, m(x), x, h(x)), \qquad h(x)_{fj} = (x_f - t_{fj})_+ $$

    with inputs centred and scaled, and $m(x)$, an estimate of what groups share (`follow`), centred and scaled too: a
    group may differ in how strongly it follows the others. The knots $t$ are quantiles. An input has knots if it has
    many values, and a group deviates in it if it varies within groups. Until `measure` is called no input has knots,
    and all vary.

    Args:
        inputs: F.
        outputs: K.
        knots: J; 0 for linear features.
    """

    centre: Tensor
    scale: Tensor
    places: Tensor
    hinge_centre: Tensor
    hinge_scale: Tensor
    varies: Tensor
    follow: Tensor

    def __init__(self, inputs: int, outputs: int, *, knots: int) -> None:
        super().__init__()
        self.inputs, self.knots = inputs, knots
        self.bends = bool(knots) and inputs <= LINEAR_ONLY
        for name in ("centre", "varies", "scale"):
            self.register_buffer(name, torch.zeros(inputs) if name == "centre" else torch.ones(inputs))
        for name in ("places", "hinge_centre", "hinge_scale"):
            self.register_buffer(name, torch.zeros(inputs, knots))
        self.register_buffer("follow", torch.zeros(outputs, self.mean_size))

    @property
    def mean_size(self) -> int:
        """P."""
        return 1 + self.inputs * (1 + self.knots)

    @property
    def slope_size(self) -> int:
        """D."""
        return 2 + self.inputs * (1 + self.knots * self.bends)

    def measure(self, x_nF: Tensor, group_n: Tensor) -> None:
        """Set the constants, in place, from the rows of training groups."""
        low_F, high_F = x_nF.amin(0), x_nF.amax(0)
        scale_F = x_nF.std(0, correction=0)
        counts = [len(column.unique()) for column in x_nF.mT]
        many_F = torch.tensor([count > self.knots + 1 for count in counts], device=x_nF.device)
        scale_F = torch.where(torch.tensor(counts, device=x_nF.device) == 2, high_F - low_F, scale_F)
        still_F = scale_F <= 1e-6 * x_nF.abs().amax(0).clamp_min(1e-6)
        self.centre.copy_(x_nF.mean(0))
        self.scale.copy_(torch.where(still_F, torch.inf, scale_F))
        u_nF = self.standardised(x_nF)
        self.varies.copy_(within_share(u_nF, group_n) > LEAST_WITHIN)
        if not self.knots:
            return
        share = torch.linspace(0, 1, self.knots + 2, dtype=x_nF.dtype, device=x_nF.device)[1:-1]
        some_nF = u_nF[torch.linspace(0, len(u_nF) - 1, min(len(u_nF), 10_000)).long()]
        self.places.copy_(some_nF.quantile(share, 0).mT)
        raw_nFJ = self._raw_hinges(u_nF)
        std_FJ = raw_nFJ.std(0, correction=0)
        self.hinge_centre.copy_(raw_nFJ.mean(0))
        self.hinge_scale.copy_(torch.where((std_FJ > 1e-3) & (many_F & ~still_F)[:, None], 1 / std_FJ, 0.0))

    def standardised(self, x_nF: Tensor) -> Tensor:
        """Inputs centred and scaled; 0 where an input is the same in all training rows."""
        return (x_nF - self.centre) / self.scale

    def mean(self, u_nF: Tensor) -> Tensor:
        """$z$ (n, P) of standardised inputs."""
        return torch.cat([torch.ones_like(u_nF[:, :1]), u_nF, self._hinges(u_nF).flatten(1)], 1)

    def slope(self, u_nF: Tensor, mean_nP: Tensor) -> Tensor:
        r"""$\phi$ (K, n, D) of standardised inputs, given their $z$."""
        follow_Kn = self.follow.to(mean_nP.dtype) @ mean_nP.mT
        parts = [u_nF * self.varies]
        if self.bends:
            hinges_nFJ = mean_nP[:, 1 + self.inputs :].unflatten(1, (self.inputs, self.knots))
            parts.append((hinges_nFJ * self.varies[:, None]).flatten(1))
        shared_nd = torch.cat(parts, 1)
        columns = torch.ones_like(follow_Kn), follow_Kn
        return torch.cat([torch.stack(columns, -1), shared_nd.expand(len(follow_Kn), *shared_nd.shape)], -1)

    def blocks(self, free: int) -> Tensor:
        """The block (P,) of each feature of the mean: constant and the last `free` inputs, other inputs, hinges."""
        linear = torch.ones(self.inputs, dtype=torch.int64)
        linear[self.inputs - free :] = 0
        hinges = torch.full((self.inputs * self.knots,), 2)
        return torch.cat([torch.zeros(1, dtype=torch.int64), linear, hinges])

    def _raw_hinges(self, u_nF: Tensor) -> Tensor:
        return (u_nF[:, :, None] - self.places).clamp_min(0)

    def _hinges(self, u_nF: Tensor) -> Tensor:
        return (self._raw_hinges(u_nF) - self.hinge_centre) * self.hinge_scale


LEAST_WITHIN = 0.01
"""Share of an input's variance within groups below which groups cannot deviate in it."""


def within_share(u_nF: Tensor, group_n: Tensor) -> Tensor:
    """The share (F,) of the variance of each input that is within groups; 0 for an input without variance."""
    count_G = torch.bincount(group_n).to(u_nF.dtype).clamp_min(1)
    mean_GF = torch.zeros(len(count_G), u_nF.shape[1], dtype=u_nF.dtype, device=u_nF.device)
    mean_GF = mean_GF.index_add(0, group_n, u_nF) / count_G[:, None]
    within_F, total_F = (u_nF - mean_GF[group_n]).square().mean(0), u_nF.var(0, correction=0)
    return torch.where(total_F > 0, within_F / total_F.clamp_min(1e-300), 0.0)
