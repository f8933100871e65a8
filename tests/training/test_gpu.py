"""On a GPU, learners compute what they compute on a CPU: `pytest -m gpu`, or KSHOT_TEST_DEVICE=cpu to try the tests.

Float64 unless it is said otherwise, so that other algorithms of the GPU change rounding alone.
"""

import copy
import os

import pytest
import torch
from training.in_ranks import Tasks
from zoo import ZOO

import kshot
from kshot.models import conv4
from kshot.training.cuda_graph import CudaGraph
from kshot.training.fit import Settings
from kshot.training.pretrain import pretraining_loop
from kshot.training.ranks import _packed, _unpacked
from kshot.training.step import MetaGradient
from kshot.types import to

DEVICE = os.environ.get("KSHOT_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
RANDOM = ("p>m>f",)
"""Learners that draw random numbers, which are others on a GPU."""
MODES = ("loop", "vmap", "traced", pytest.param("compiled", marks=pytest.mark.slow))


def make(name: str, device: str = "cpu") -> kshot.Learner:
    torch.manual_seed(0)
    return copy.deepcopy(ZOO[name].make(3)).double().to(device)


def gradient(name: str, device: str, mode: str) -> list[torch.Tensor]:
    """The loss of three tasks and its gradient, on the CPU, where replays are compared with plain steps."""
    learner, tasks = make(name, device), to(Tasks(ZOO[name]).stack("train", range(3)), device)
    step = MetaGradient(learner, mode)
    for _ in range(6):
        learner.zero_grad()
        loss = step(tasks)
    if mode == "compiled" and step.engine != mode:
        pytest.skip(step.choice)
    assert step.engine == mode, step.choice
    return [loss.cpu(), *(torch.zeros(()) if p.grad is None else p.grad.cpu() for p in learner.parameters())]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["maml", "maml, regression", "protonet"])
def test_each_mode_has_the_gradient_of_the_cpu(name: str, mode: str) -> None:
    for found, expected in zip(gradient(name, DEVICE, mode), gradient(name, "cpu", "loop")):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("mode", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_recorded_steps_are_cuda_graphs_that_read_new_weights_and_tasks(mode: str) -> None:
    learner = make("maml", DEVICE)
    step, plain = MetaGradient(learner, mode), MetaGradient(learner, "vmap")
    for number in range(6):
        tasks = to(Tasks(ZOO["maml"]).stack("train", range(3 * number, 3 * number + 3)), DEVICE)
        found = []
        for gradient_of in (step, plain):
            learner.zero_grad()
            loss = gradient_of(tasks)
            found.append([loss, *(p.grad for p in learner.parameters() if p.grad is not None)])
        for mine, other in zip(*found, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)
        with torch.no_grad():
            for p in learner.parameters():
                p.mul_(1.01)
    (entry,) = step._replayer._entries.values()
    assert isinstance(entry.program, CudaGraph)
    assert entry.program._recorded is not None


@pytest.mark.parametrize("name", [name for name in ZOO if name not in RANDOM])
def test_each_learner_has_the_figures_of_the_cpu(name: str) -> None:
    found, expected = (
        kshot.evaluate(make(name, device), Tasks(ZOO[name]), num_tasks=3, audit=False) for device in (DEVICE, "cpu")
    )
    assert found.episodes_sha256 == expected.episodes_sha256
    for metric, values in expected.per_task.items():
        assert found.per_task[metric] == pytest.approx(values, rel=1e-6, abs=1e-8), metric


@pytest.mark.parametrize("mode", ["loop", "vmap", "traced"])
def test_training_takes_the_steps_of_the_cpu(mode: str) -> None:
    options = {"steps": 20, "tasks_per_step": 3}
    found = kshot.fit(make("maml", DEVICE), Tasks(ZOO["maml"]), mode=mode, **options)
    expected = kshot.fit(make("maml"), Tasks(ZOO["maml"]), mode="loop", **options)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["maml", "protonet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaled_loss_has_about_the_loss_and_gradient_of_float32(name: str, dtype: torch.dtype) -> None:
    learner, task = make(name, DEVICE).float(), to(Tasks(ZOO[name]).task("train", 0), DEVICE)
    task = kshot.Task(*(kshot.Batch(*(leaf.float() for leaf in batch)) for batch in task))
    exact = learner(task)
    exact.backward()
    expected = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
    found = torch.full_like(expected, torch.nan)
    while not found.isfinite().all() and scaler.get_scale() >= 1:  # the scale is halved until nothing overflows
        learner.zero_grad()
        with torch.autocast(DEVICE, dtype):
            loss = learner(task)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
        scaler.step(optimizer)
        scaler.update()
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("mode", MODES)
def test_training_in_narrower_types_has_about_the_losses_of_float32(mode: str, precision: str) -> None:
    def losses(precision: str) -> list[float]:
        learner = make("maml", DEVICE).float()
        source = Tasks(ZOO["maml"], dtype=torch.float32)
        return kshot.fit(learner, source, steps=6, tasks_per_step=3, mode=mode, precision=precision)

    assert losses(precision) == pytest.approx(losses("float32"), rel=0.05)


def test_pretraining_in_bfloat16_has_about_the_losses_of_float32() -> None:
    def losses(precision: str) -> list[float]:
        torch.manual_seed(0)
        model = conv4(1, None, channels=4, size=28).to(DEVICE)
        source = kshot.sources.glyphs(ways=3, queries=2)
        return pretraining_loop(model, source, Settings(0.01, size=16), precision=precision).run(3)

    assert losses("bfloat16") == pytest.approx(losses("float32"), rel=0.05)


def test_what_is_sent_to_another_process_is_on_its_gpu() -> None:
    sent = {"task": torch.ones(3, device=DEVICE), "number": torch.ones(3)}
    found = _unpacked(_packed(sent))
    assert [found[name].device.type for name in sent] == [DEVICE, "cpu"]
