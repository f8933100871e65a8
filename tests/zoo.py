"""The table that the contract tests go through: one row a learner."""

import copy
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import nn

import kshot
from kshot import Learner, Task, objectives, testing
from kshot.learners import SupportMean
from kshot.testing.tasks import SYMBOLS


class Row(NamedTuple):
    """A learner under test.

    Attributes:
        make: ways -> learner, for inputs (n, 1, 8, 8) and one-hot targets, or (n, 1) to (n, 1) for regression, or
            symbols (n, 3) to those that follow them for text.
        exact: whether the meta-gradient is the exact derivative; an approximation is tested against its formula.
        steps: steps of meta-training until adapting helps; none for most.
    """

    make: Callable[[int], Learner]
    exact: bool = True
    steps: int = 0

    @property
    def objective(self) -> objectives.Objective:
        """Loss and metrics of the tasks."""
        return _objective(self.make)

    @property
    def classes(self) -> bool:
        """Whether the tasks are classification."""
        return self.objective.task_specific_classes


@cache
def _objective(make: Callable[[int], Learner]) -> objectives.Objective:
    return make(3).objective


def small_conv(outputs: int | None, *, norm: bool = True, maps: bool = False) -> nn.Module:
    """A convolutional net that is smooth (Softplus), so that finite differences hold; without outputs (n, 16), or maps
    (n, 4, 2, 2)."""
    layers = [nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3) if norm else nn.Identity(), nn.Softplus()]
    layers += [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Softplus()]
    body = nn.Sequential(*layers, nn.Identity() if maps else nn.Flatten())
    return nn.Sequential(body, nn.Linear(16, outputs)) if outputs else body


def small_segmenter(outputs: int | None) -> nn.Module:
    """A smooth convolutional net to logits (n, outputs, 4, 4), or maps of 4 channels."""
    layers = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Softplus()]
    return nn.Sequential(*layers, nn.Conv2d(4, outputs, 1)) if outputs else nn.Sequential(*layers)


def wave(inputs: int = 1, outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


class Causal(nn.Module):
    """The symbol after each, from it and the mean of those so far: (n, L) to (n, L, SYMBOLS)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(SYMBOLS, 6), nn.Linear(6, SYMBOLS)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(symbols)
        means = embedded.cumsum(1) / torch.arange(1, symbols.shape[1] + 1, device=symbols.device)[:, None]
        return self.head(torch.tanh(embedded + means))


def smooth_manhattan(feat_MD: torch.Tensor, proto_CD: torch.Tensor) -> torch.Tensor:
    return -((feat_MD[:, None] - proto_CD).square() + 1e-3).sqrt().sum(-1)


def early(learner: Learner) -> Learner:
    """A learner that was told that its training has just begun."""
    learner.set_progress(0.05)
    return learner


def rates(model: nn.Module) -> dict[str, Learner]:
    """Two plans of adapting a model, which they share."""
    objective = objectives.mse if isinstance(model[0], nn.Linear) else objectives.classification
    return {str(rate): kshot.maml(model, inner_lr=rate, objective=objective) for rate in (0.02, 0.2)}


def chosen(inputs: int, outputs: int, *, knots: int) -> Learner:
    """A choice among plans of which one is fitted in closed form, and one has nothing to fit."""
    pooling = kshot.learners.partial_pooling(inputs, outputs, knots=knots, objective=objectives.mse)
    return kshot.learners.choose({"pooling": pooling, "mean": SupportMean(objectives.mse)}, num_tasks=12)


@cache
def fitted(make: Callable[..., Learner]) -> Learner:
    """A learner fitted in closed form to lines of random slopes with noise; callers copy it."""
    learner = make(1, 1, knots=1)
    kshot.training.fit_closed_form(learner, Lines())
    return learner


class Lines(kshot.TaskSource):
    """The regression tasks of `kshot.testing.make_task`."""

    objective, seed = objectives.mse, 0

    def task(self, split: str, index: int) -> Task:
        task, random = testing.make_task(objectives.mse, 5, 2, seed=1000 + index), torch.Generator().manual_seed(index)
        noise = 0.2 * torch.randn(task.support.targets.shape, generator=random)
        return task._replace(support=task.support._replace(targets=task.support.targets + noise))

    def num_tasks(self, split: str) -> int:
        return 12


ZOO = {
    "maml": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, steps=2)),
    "maml, running BatchNorm": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, batchnorm="running")),
    "maml, transductive": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, batchnorm="query")),
    "maml, tasknorm": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, steps=2, batchnorm="tasknorm")),
    "protonet, tasknorm": Row(lambda ways: kshot.protonet(small_conv(None), batchnorm="tasknorm")),
    "proto-maml, tasknorm": Row(
        lambda ways: kshot.learners.proto_maml(small_conv(None), inner_lr=0.05, steps=2, batchnorm="tasknorm")
    ),
    "maml, head only": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, steps=2, adaptable="1.*")),
    "maml, multilabel": Row(
        lambda ways: kshot.maml(small_conv(ways), inner_lr=0.5, steps=3, objective=objectives.multilabel)
    ),
    "protonet, multilabel": Row(lambda ways: kshot.protonet(small_conv(None), objective=objectives.multilabel)),
    "r2d2, multilabel": Row(lambda ways: kshot.learners.r2d2(small_conv(None), objective=objectives.multilabel)),
    "logistic regression, multilabel": Row(
        lambda ways: kshot.learners.logistic_regression(small_conv(None), objective=objectives.multilabel)
    ),
    "maml, segmentation": Row(
        lambda ways: kshot.maml(small_segmenter(2), inner_lr=0.5, steps=3, objective=objectives.segmentation)
    ),
    "protonet, segmentation": Row(
        lambda ways: kshot.protonet(small_segmenter(None), objective=objectives.segmentation)
    ),
    "r2d2, segmentation": Row(
        lambda ways: kshot.learners.r2d2(small_segmenter(None), scale=5.0, objective=objectives.segmentation)
    ),
    "maml, regression": Row(lambda ways: kshot.maml(wave(), inner_lr=0.05, steps=3, objective=objectives.mse)),
    "fomaml": Row(lambda ways: kshot.learners.fomaml(small_conv(ways), inner_lr=0.2, steps=2), exact=False),
    "reptile": Row(lambda ways: kshot.learners.reptile(small_conv(ways), inner_lr=0.2, steps=3), exact=False),
    "anil": Row(lambda ways: kshot.learners.anil(small_conv(ways), inner_lr=0.2, steps=2, head="1")),
    "boil": Row(lambda ways: kshot.learners.boil(small_conv(ways), inner_lr=0.2, steps=2, head="1")),
    "meta-sgd": Row(lambda ways: kshot.learners.meta_sgd(small_conv(ways), inner_lr=0.2, steps=2)),
    "maml++": Row(lambda ways: kshot.learners.maml_pp(small_conv(ways), inner_lr=0.2, steps=2)),
    "maml++, early in training": Row(
        lambda ways: early(kshot.learners.maml_pp(small_conv(ways), inner_lr=0.2, steps=2, first_order=0.0))
    ),
    "imaml": Row(lambda ways: kshot.learners.imaml(small_conv(ways), inner_lr=0.2, steps=3, iterations=2), exact=False),
    "imaml, neumann": Row(
        lambda ways: kshot.learners.imaml(small_conv(ways), inner_lr=0.1, steps=3, proximity=2.0, method="neumann"),
        exact=False,
    ),
    "cavia, film": Row(
        lambda ways: kshot.learners.cavia(small_conv(ways), task_dim=6, inner_lr=1.0, steps=2, film=["0.1", "0.4", "1"])
    ),
    "cavia": Row(
        lambda ways: kshot.learners.cavia(wave(1 + 4), task_dim=4, inner_lr=2.0, steps=5, objective=objectives.mse),
    ),
    "meta-curvature": Row(lambda ways: kshot.learners.meta_curvature(small_conv(ways), inner_lr=0.2, steps=2)),
    "meta-kfo": Row(lambda ways: kshot.learners.meta_kfo(small_conv(ways), inner_lr=0.2, steps=2)),
    "alfa": Row(lambda ways: kshot.learners.alfa(small_conv(ways), inner_lr=0.2, steps=2)),
    "proto-maml": Row(lambda ways: kshot.learners.proto_maml(small_conv(None), inner_lr=0.05, steps=2)),
    "unicorn-maml": Row(lambda ways: kshot.learners.unicorn_maml(small_conv(None), features=16, inner_lr=0.2, steps=3)),
    "warp-maml": Row(lambda ways: kshot.learners.warp_maml(small_conv(ways), warp="0.3.*", inner_lr=0.2, steps=2)),
    "t-net": Row(lambda ways: kshot.learners.t_net(small_conv(ways), inner_lr=0.2, steps=2)),
    "learned optimizer, lstm": Row(
        lambda ways: kshot.learners.learned_optimizer(small_conv(ways), inner_lr=0.2, steps=2)
    ),
    "learned optimizer, mlp": Row(
        lambda ways: kshot.learners.learned_optimizer(small_conv(ways), inner_lr=0.2, steps=2, kind="mlp")
    ),
    "learned optimizer, gates": Row(
        lambda ways: kshot.learners.learned_optimizer(small_conv(ways), inner_lr=0.2, steps=2, kind="gates")
    ),
    "protonet": Row(lambda ways: kshot.protonet(small_conv(None))),
    "protonet, cosine": Row(lambda ways: kshot.protonet(small_conv(None, norm=False), distance="cosine")),
    "caml": Row(lambda ways: kshot.learners.caml(small_conv(None), features=16, classes=6, width=16, layers=2)),
    "cnaps": Row(
        lambda ways: kshot.learners.cnaps(small_conv(None), small_conv(None), film=["0", "3"], task_dim=16),
    ),
    "cnaps, prototypes": Row(
        lambda ways: kshot.learners.cnaps(
            small_conv(None, norm=False), small_conv(None), film=["0", "3"], task_dim=16, head="prototypes"
        ),
    ),
    "cnp": Row(lambda ways: kshot.learners.cnp(1, 1, width=16, depth=1), steps=100),
    "attentive np": Row(
        lambda ways: kshot.learners.attentive_np(1, 1, width=16, depth=1, heads=2),
        steps=100,
    ),
    "tanp": Row(lambda ways: kshot.learners.tanp(1, 1, width=16, depth=1, clusters=3), steps=100),
    "cnp, an embedding": Row(
        lambda ways: kshot.learners.cnp(4, 1, width=16, depth=1, embedding=wave(outputs=4)), steps=100
    ),
    "tnp-d": Row(lambda ways: kshot.learners.tnp_d(1, 1, width=16, layers=2, heads=2), steps=100),
    "prior-fitted": Row(lambda ways: kshot.learners.prior_fitted(cell_width=8, width=16, layers=2, heads=2)),
    "prior-fitted, regression": Row(
        lambda ways: kshot.learners.prior_fitted(
            cell_width=8, width=16, layers=2, heads=2, objective=objectives.gaussian
        ),
    ),
    "protonet, a distance of one's own": Row(lambda ways: kshot.protonet(small_conv(None), distance=smooth_manhattan)),
    "r2d2": Row(lambda ways: kshot.learners.r2d2(small_conv(None))),
    "r2d2, regression": Row(
        lambda ways: kshot.learners.r2d2(wave(outputs=4), l2=0.1, scale=None, objective=objectives.mse)
    ),
    "fold-in": Row(
        lambda ways: kshot.learners.alpaca(wave(outputs=4), features=4, prior=1.0, noise=0.1),
    ),
    "partial pooling": Row(lambda ways: kshot.learners.partial_pooling(1, 1, knots=2, noise=0.1)),
    "partial pooling, an embedding": Row(
        lambda ways: kshot.learners.partial_pooling(
            4, 1, knots=0, noise=0.1, objective=objectives.mse, embedding=wave(outputs=4)
        )
    ),
    "partial pooling, classes": Row(
        lambda ways: kshot.learners.partial_pooling(
            16,
            ways,
            knots=0,
            steps=3,
            objective=objectives.shared_classification,
            embedding=small_conv(None, norm=False),
        )
    ),
    "partial pooling, fitted": Row(lambda ways: copy.deepcopy(fitted(kshot.learners.partial_pooling))),
    "boosted residual": Row(lambda ways: copy.deepcopy(fitted(kshot.learners.boosted_residual))),
    "choose": Row(lambda ways: kshot.learners.choose(rates(small_conv(ways)))),
    "mixture": Row(
        lambda ways: kshot.learners.mixture(rates(small_conv(ways)), weights={"0.02": 1, "0.2": 3}, tune=True)
    ),
    "choose, fitted": Row(lambda ways: copy.deepcopy(fitted(chosen))),
    "melu": Row(
        lambda ways: kshot.learners.melu(wave(), inner_lr=0.05, steps=2, decision="2.*", objective=objectives.mse),
    ),
    "matching net": Row(lambda ways: kshot.learners.matching_net(small_conv(None))),
    "matching net, full context": Row(
        lambda ways: kshot.learners.matching_net(small_conv(None), context_steps=2, features=16)
    ),
    "relation net": Row(
        lambda ways: kshot.learners.relation_net(small_conv(None), features=16, hidden=32, loss="objective"), steps=100
    ),
    "relation net, maps": Row(
        lambda ways: kshot.learners.relation_net(small_conv(None, maps=True), features=(4, 2, 2), hidden=8), steps=100
    ),
    "feat": Row(
        lambda ways: kshot.learners.feat(
            small_conv(None), features=16, temperature=8.0, dropout=0.0, attention_dropout=0.0
        )
    ),
    "frn": Row(lambda ways: kshot.learners.frn(small_conv(None, maps=True))),
    "frn, no maps": Row(lambda ways: kshot.learners.frn(small_conv(None))),
    "deep-bdc": Row(lambda ways: kshot.learners.deep_bdc(small_conv(None, maps=True))),
    "deep-bdc, no maps": Row(lambda ways: kshot.learners.deep_bdc(small_conv(None), metric="euclidean")),
    "metaoptnet, svm": Row(lambda ways: kshot.learners.metaoptnet(small_conv(None), l2=1.0)),
    "metaoptnet, ridge": Row(lambda ways: kshot.learners.metaoptnet(small_conv(None), base="ridge", l2=1.0)),
    "logistic regression": Row(lambda ways: kshot.learners.logistic_regression(small_conv(None), scale=2.0)),
    "simpleshot": Row(lambda ways: kshot.learners.simpleshot(small_conv(None), features=16, batchnorm="support")),
    "plda": Row(lambda ways: kshot.learners.plda(small_conv(None), features=16, scale=0.5, batchnorm="support")),
    "probe": Row(lambda ways: kshot.learners.probe(small_conv(None), features=16, batchnorm="support")),
    "probe, ridge": Row(
        lambda ways: kshot.learners.probe(small_conv(None), features=16, base="ridge", batchnorm="support")
    ),
    "baseline++": Row(
        lambda ways: kshot.learners.baseline_pp(small_conv(None), inner_lr=0.1, steps=3, batchnorm="support")
    ),
    "p>m>f": Row(
        lambda ways: kshot.learners.pmf(small_conv(None, norm=False), inner_lr=0.01, steps=2, shift=1, flip=True)
    ),
    "laplacian-shot": Row(
        lambda ways: kshot.learners.laplacian_shot(small_conv(None), features=16, steps=5, batchnorm="support"),
    ),
    "tim": Row(lambda ways: kshot.learners.tim(small_conv(None), steps=4, batchnorm="support")),
    "bd-cspn": Row(lambda ways: kshot.learners.bd_cspn(small_conv(None), batchnorm="support")),
    "pt-map": Row(lambda ways: kshot.learners.pt_map(small_conv(None), sharpness=3.0, steps=2, batchnorm="support")),
    "transductive fine-tuning": Row(
        lambda ways: kshot.learners.transductive_fine_tune(
            small_conv(None), inner_lr=0.01, steps=3, batchnorm="support"
        ),
        exact=False,
    ),
    "dynamic evaluation": Row(
        lambda ways: kshot.learners.dynamic_evaluation(Causal(), inner_lr=0.5),
        exact=False,
    ),
    "dynamic evaluation, each query by itself": Row(
        lambda ways: kshot.learners.dynamic_evaluation(Causal(), inner_lr=0.5, causal_queries=False, order=2)
    ),
    "forecast ensemble": Row(
        lambda ways: kshot.learners.forecast_ensemble((12, 1), horizon=3, hidden=8, objective=objectives.forecast(4))
    ),
    "from scratch": Row(lambda ways: kshot.learners.from_scratch(small_conv(ways), inner_lr=0.1, steps=5), exact=False),
    "fine-tune": Row(lambda ways: kshot.learners.fine_tune(small_conv(ways), inner_lr=0.1, steps=5), exact=False),
    "nearest centroid": Row(lambda ways: kshot.learners.nearest_centroid()),
    "support mean": Row(lambda ways: SupportMean(objectives.mse)),
}


REPRESENTATIVES = {
    "maml", "maml, transductive", "maml, multilabel", "maml, segmentation", "maml, regression", "reptile", "imaml",
    "learned optimizer, lstm", "protonet", "cnp", "cnaps", "prior-fitted", "r2d2", "fold-in", "partial pooling",
    "choose", "p>m>f", "tim", "dynamic evaluation", "dynamic evaluation, each query by itself", "forecast ensemble",
    "support mean",
}  # fmt: skip
"""Rows of each means of adaptation and each kind of task; where a test takes long for all rows, the others are slow."""


def names(rows: set[str] = REPRESENTATIVES) -> list:
    """The names of all rows as parameters of a test that is slow for all but some."""
    assert rows <= set(ZOO), rows - set(ZOO)
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in rows)) for name in ZOO]


def make_task(row: Row, ways: int = 3, shots: int = 2, queries: int = 3, *, seed: int = 0) -> Task:
    """A task that the row's learner can solve."""
    return testing.make_task(row.objective, ways, shots, queries, seed=seed)
