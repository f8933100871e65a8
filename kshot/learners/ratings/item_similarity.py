"""Clicks: items similar to those that a new user clicked, with a similarity that is meta-learned.

Shape legend: N support rows, M query rows, D factors of an item, H kinds of similarity.
"""

from __future__ import annotations

import os
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learner import Learner
from kshot.objectives import Objective
from kshot.types import Batch, Tree


RIDGE=int(os.environ.get('RIDGE',0)); LIST=float(os.environ.get('LIST',0))
class ItemSimilarity(Learner):
    def __init__(self, factors: int, objective: Objective, *, heads: int, hidden: int) -> None:
        super().__init__(objective)
        size = factors - 1
        position = torch.arange(1, size + 1).log() / 2
        top = float(os.environ.get("TOP", 2))
        if os.environ.get("SMOOTH"):
            x = torch.arange(1, size + 1).log() / torch.tensor(float(size)).log()
            self.register_buffer("basis", torch.stack([x, x.square(), x ** 3]))
            self.coef = nn.Parameter(torch.zeros(heads, 3)); self.coef.data[:, 0] = -torch.linspace(0, top, heads)
        else:
            self.lf = nn.Parameter(-position * torch.linspace(0, top, heads)[:, None])
        self.support_powers = nn.Parameter(torch.zeros(heads, 2))
        self.item_powers = nn.Parameter(torch.zeros(heads, 2))
        self.log_scale = nn.Parameter(torch.full((heads,), float(os.environ.get("SCALE", 4))))
        self.log_noise = nn.Parameter(torch.full((heads,), 1.0))
        self.linear = nn.Linear(heads + 1, 1)
        self.correction = nn.Sequential(nn.Linear(heads + 2, hidden), nn.GELU(), nn.Linear(hidden, 1))
        nn.init.constant_(self.linear.weight, 1.0); nn.init.constant_(self.linear.bias, -2.5)
        with torch.no_grad():
            self.linear.weight[:, -1] = float(os.environ.get("POP", 0.1))
            self.item_powers[:, 1] = -1
        for p in self.correction[2].parameters():
            nn.init.zeros_(p)

    def _adapt(self, support: Batch) -> Tree:
        pop, z, rest = self._parts(support.inputs)
        clicks = support.weight * support.targets[:, 1]
        w = clicks[:, None] * self._powers(self.support_powers, pop, rest)  # (N, H)
        f = ((self.coef @ self.basis) if hasattr(self, 'coef') else self.lf).exp()
        if RIDGE:
            K = (z * f[:, None]) @ z.mT  # (H, N, N)
            noise = self.log_noise.exp()[:, None, None] * torch.eye(len(z))
            a = torch.linalg.solve(K * w.mT[..., None] + noise, w.mT[..., None])[..., 0]
            user = a @ z * f * (1 + self.log_noise.exp())[:, None]
        else:
            user = (w.mT @ z) * f  # (H, D)
        n = clicks.sum()
        return {"user": user / (n + 1), "clicks": n}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        pop, z, rest = self._parts(inputs)
        s = self._powers(self.item_powers, pop, rest) * (z @ state["user"].mT)  # (M, H)
        s = torch.asinh(s * self.log_scale.exp() )
        x = torch.cat([s, pop[:, None]], 1)
        n = state["clicks"].log1p().expand(len(pop), 1) / 3
        logit = self.linear(x) + self.correction(torch.cat([x, n], 1))
        return torch.cat([torch.zeros_like(logit), logit], 1)

    def forward(self, task):
        from kshot.learner import predict_query
        p = predict_query(self, self.adapt(task.support), task.query)
        loss = self.objective.loss(p, task.query)
        if LIST:
            q = task.query
            logit = torch.where(q.weight > 0, p[:, 1], -1e9)
            pos = q.targets[:, 1] * q.weight
            loss = loss + LIST * (pos * (logit.logsumexp(0) - logit.clamp_min(-1e3))).sum() / pos.sum().clamp_min(1)
        return loss

    def _parts(self, inputs):
        f = inputs["item_factors"]
        z = f[:, 1:]
        return f[:, 0], z, (1 - z.square().sum(1)).clamp_min(1e-3)

    def _powers(self, powers, pop, rest):
        return (torch.stack([pop, rest.log()], 1) @ powers.mT).exp()


def item_similarity(factors: int, *, heads: PositiveInt = 4, hidden: PositiveInt = 32, objective: Objective) -> ItemSimilarity:
    return ItemSimilarity(factors, objective, heads=heads, hidden=hidden)
