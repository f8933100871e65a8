"""Steps within memory: chunks of tasks, recomputed inner steps, cores, and what is predicted before."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest
import torch
from torch import nn
from zoo import ZOO, make_task

import kshot
from kshot import free_memory, objectives
from kshot.inner.rules import Adam
from kshot.inner.unrolling import recomputing, unroll
from kshot.sources import sinusoids
from kshot.training.memory import available_memory, predict_peak
from kshot.training.step import MetaGradient, Plan
from kshot.types import stack, unstack

MIB = 2**20


def waves(count=6):
    return sinusoids().stack("train", range(count))


def wide(steps=3, width=64):
    return kshot.maml(kshot.models.mlp(1, 1, [width, width]), inner_lr=0.01, steps=steps, objective=objectives.mse)


def gradients(learner, tasks, **options):
    learner.zero_grad()
    step = MetaGradient(learner, **options)
    return step, [step(tasks), *(p.grad.clone() for p in learner.parameters())]


def peak(learner, tasks, *, recompute=False):
    def loop(one, tasks):
        with recomputing(recompute):
            for task in unstack(tasks):
                one(task).backward()

    return predict_peak(learner, tasks, loop)


@contextmanager
def two_threads():
    """A context only for what needs two: where other processes use the cores, threads wait long for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("mode", "chunk"),
    [
        *(("vmap", chunk) for chunk in (1, 4, 6, 9)),
        ("compiled", 3),
        *(pytest.param("compiled", chunk, marks=pytest.mark.slow) for chunk in (1, 4, 6, 9)),
    ],
)
def test_chunks_add_up_to_the_whole(mode, chunk):
    learner, tasks = wide(), waves()
    _, expected = gradients(learner, tasks, mode="loop")
    _, found = gradients(learner, tasks, mode=mode, chunk=chunk, backend="eager")
    torch.testing.assert_close(found, expected)


def test_recomputed_steps_give_bitwise_the_same_gradient():
    learner = kshot.learners.maml_pp(
        kshot.models.mlp(1, 1), inner_lr=0.05, steps=3, objective=objectives.mse
    )  # learns its rates
    _, expected = gradients(learner, waves(), mode="loop", recompute=False)
    step, found = gradients(learner, waves(), mode="loop", recompute=True)
    assert step.plan.recompute
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_a_recomputed_rule_with_a_state_has_the_exact_derivative():
    rule, target = Adam(0.1), torch.randn(3, dtype=torch.float64)
    found = {}
    for on in (False, True):
        start = torch.ones(3, dtype=torch.float64, requires_grad=True)
        with recomputing(on):
            after = unroll(lambda params: (params["w"] - target).pow(4).sum(), {"w": start}, rule, steps=4)
        after["w"].sin().sum().backward()
        found[on] = start.grad
    assert torch.equal(found[True], found[False])


def test_memory_for_each_further_step_is_the_parameters_alone():
    """Kept: the activations of a step; recomputed: θ only. Conv4 on 5 images has 13 times more of the former."""
    images = torch.rand(5, 1, 28, 28)
    batch = kshot.Batch.of(images, torch.arange(5), ways=5)
    task = kshot.Task(batch, batch)
    tasks = kshot.types.stack([task])
    growth = {}
    for recompute in (False, True):
        peaks = [
            peak(kshot.maml(kshot.models.conv4(1, 5), inner_lr=0.1, steps=steps), tasks, recompute=recompute)
            for steps in (1, 2)
        ]
        growth[recompute] = peaks[1] - peaks[0]
    parameters = sum(4 * p.numel() for p in kshot.models.conv4(1, 5).parameters())
    assert growth[True] <= 1.1 * parameters
    assert growth[True] <= growth[False] / 5


def test_the_prediction_is_that_of_a_plain_sum():
    """Of a sum of exp(w), kept for its gradient, and that gradient: 2 or 3 vectors live at once, never 4."""

    class Squares(kshot.Learner):
        def __init__(self):
            super().__init__(objectives.mse)
            self.weight = nn.Parameter(torch.ones(1000))

        def _adapt(self, support):
            return {}

        def predict(self, state, inputs):
            return inputs

        def forward(self, task):
            return self.weight.exp().sum()

    found = peak(Squares(), waves(1))
    assert 8000 <= found <= 12_100
    assert peak(Squares(), waves(1)) == found


def test_a_step_that_would_not_fit_goes_in_chunks():
    learner, tasks = wide(width=256), waves(16)
    _, expected = gradients(learner, tasks, mode="loop")
    room = int(1.2 * predict_peak(learner, waves(4), lambda one, t: torch.vmap(one)(t).mean().backward()))
    step, found = gradients(learner, tasks, mode="vmap", memory=room)
    assert 4 <= step.plan.chunk <= 6
    torch.testing.assert_close(found, expected)


def test_a_loop_that_would_not_fit_recomputes_and_one_that_never_fits_says_what_it_needs():
    """Large support sets on a small network: activations weigh more than parameters."""
    learner = wide(steps=4, width=32)
    batch = kshot.Batch.of(torch.randn(500, 1), torch.randn(500, 1))
    tasks = kshot.types.stack([kshot.Task(batch, batch)] * 2)
    kept, again = (peak(learner, tasks, recompute=on) for on in (False, True))
    assert again < 0.6 * kept
    step, _ = gradients(learner, tasks, mode="loop", memory=(kept + again) // 2)
    assert step.plan == Plan(recompute=True)
    step, _ = gradients(learner, tasks, mode="loop", memory=2 * kept)
    assert step.plan == Plan()
    with pytest.raises(MemoryError, match="one task needs about .* GiB, but the limit is .* GiB: use smaller images"):
        gradients(learner, tasks, mode="loop", memory=again // 2)
    with pytest.raises(MemoryError, match="with mode='loop', which can recompute"):
        gradients(learner, tasks, mode="vmap", memory=again // 2)


def test_small_steps_are_not_planned(monkeypatch):
    monkeypatch.setattr("kshot.training.step.predict_peak", lambda *args: pytest.fail("planned"))
    step, _ = gradients(wide(), waves(), mode="vmap")
    assert step.plan == Plan()


def test_free_memory_is_that_of_this_machine():
    assert 16 * MIB < available_memory(torch.device("cpu")) < 2**46


def _write(root, **files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


NONE = 9223372036854771712  # what version 1 writes for no limit


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("0::/", {"memory.max": 100, "memory.current": 30}, [70]),  # a container of its own
        ("0::/", {"memory.max": "max", "memory.current": 30}, []),
        ("0::/a/b", {"a/memory.max": 100, "a/memory.current": 90, "a/b/memory.max": 500, "a/b/memory.current": 20},
         [10, 480]),
        ("0::/a/b", {"a/b/memory.max": "max", "a/b/memory.current": 1, "a/memory.max": 64, "a/memory.current": 60,
                     "a/memory.stat": "anon 4\ninactive_file 50"}, [54]),
        ("0::/../other", {"memory.max": 100, "memory.current": 99}, [1]),  # outside of what is mounted
        ("3:cpu:/x\n4:memory:/docker/1", {"memory/memory.limit_in_bytes": 9, "memory/memory.usage_in_bytes": 4}, [5]),
        ("4:cpuset,memory:/j", {"memory/memory.limit_in_bytes": NONE, "memory/memory.usage_in_bytes": 40,
                                "memory/j/memory.limit_in_bytes": 90, "memory/j/memory.usage_in_bytes": 40,
                                "memory/j/memory.stat": "cache 9\ninactive_file 3\ntotal_inactive_file 5"}, [55]),
        ("4:memory:/\n0::/s", {"unified/s/memory.max": 50, "unified/s/memory.current": 10}, [40]),
        ("", {}, []),
    ],
)  # fmt: skip
def test_the_limits_of_control_groups_of_both_versions_count(tmp_path, cgroup, files, left):
    _write(tmp_path, **{"proc/cgroup": cgroup}, **{f"sys/{name}": content for name, content in files.items()})
    assert list(free_memory._of_cgroups(tmp_path / "proc", tmp_path / "sys")) == left


def test_where_there_are_no_control_groups_the_machine_alone_counts(tmp_path, monkeypatch):
    assert list(free_memory._of_cgroups(tmp_path / "absent", tmp_path)) == []
    machine = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(free_memory, "_of_cgroups", lambda: [900, 800])
    monkeypatch.setattr(free_memory, "_of_process", list)
    assert free_memory.free_memory() == 800
    monkeypatch.setattr(free_memory, "_of_process", lambda: [-5])
    assert free_memory.free_memory() == 0


@pytest.mark.parametrize("mode", ["vmap", "compiled"])
def test_a_step_that_runs_out_of_memory_is_taken_again_in_chunks(mode, monkeypatch, caplog):
    """The prediction does not see fragments; dropout shows that the second attempt draws the same numbers."""
    model = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    learner, tasks = kshot.maml(model, inner_lr=0.01, objective=objectives.mse), waves(5)
    torch.manual_seed(0)
    _, expected = gradients(learner, tasks, mode=mode, chunk=2, backend="eager")
    vmap = torch.vmap

    def allocate(run):
        def limited(tasks):
            if len(tasks.support.weight) > 2:
                torch.rand(3)
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 14848000 bytes.")
            return run(tasks)

        return limited

    monkeypatch.setattr(torch, "vmap", lambda *args, **options: allocate(vmap(*args, **options)))
    torch.manual_seed(0)
    step, found = gradients(learner, tasks, mode=mode, backend="eager")
    assert step.plan == Plan(chunk=2)
    assert step.engine == mode
    assert "ran out of memory" in caplog.text
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert step.state()["plans"][next(iter(step.state()["plans"]))] == [2, False]


def test_a_loop_that_runs_out_of_memory_recomputes_its_steps_and_then_says_so(monkeypatch):
    learner, tasks = wide(), waves(2)
    step = MetaGradient(learner, "loop")
    run, kept = step._loop, []

    def limited(tasks):
        kept.append(step.plan.recompute)
        if len(kept) in (1, 3, 4):
            raise MemoryError
        return run(tasks)

    monkeypatch.setattr(step, "_loop", limited)
    _, expected = gradients(learner, tasks, mode="loop")
    learner.zero_grad()
    torch.testing.assert_close([step(tasks), *(p.grad for p in learner.parameters())], expected)
    assert kept == [False, True]
    with pytest.raises(MemoryError, match="one task does not fit into memory: use smaller images"):
        step(tasks)


LIMITED = """
import resource, sys
import psutil, torch
import kshot
from kshot.free_memory import free_memory
from kshot.training.step import MetaGradient

torch.set_num_threads(1)
learner = kshot.maml(kshot.models.mlp(1, 1, [64, 64]), inner_lr=0.01, steps=3, objective=kshot.objectives.mse)
batch = kshot.Batch.of(torch.randn(2000, 1), torch.randn(2000, 1))
task = kshot.Task(batch, batch)
tasks = kshot.types.stack([task] * 64)
MetaGradient(learner, "vmap", chunk=1)(kshot.types.stack([task] * 2))  # loads what a step needs
room = 400 << 20
resource.setrlimit(resource.{limit}, (psutil.Process().memory_info().{used} + room,) * 2)
assert free_memory() <= room
step = MetaGradient(learner, "vmap")
step(tasks)
print(step.plan.chunk)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process")
@pytest.mark.parametrize(
    ("limit", "used"), [("RLIMIT_AS", "vms"), pytest.param("RLIMIT_DATA", "data", marks=pytest.mark.slow)]
)
def test_a_step_stays_within_the_limit_of_its_process(limit, used):
    code = LIMITED.format(limit=limit, used=used)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-1000:]
    assert 1 <= int(done.stdout) < 64


def few_drawings(count=4):
    return stack([make_task(ZOO["maml"], seed=seed) for seed in range(count)])


def test_cores_give_the_gradient_of_the_loop_time_after_time():
    learner, tasks = ZOO["maml"].make(3), few_drawings(3)
    _, expected = gradients(learner, tasks, mode="loop")
    step = MetaGradient(learner, "traced")
    runs = []
    with two_threads():
        for _ in range(4):
            learner.zero_grad()
            runs.append([step(tasks), *(p.grad.clone() for p in learner.parameters())])
        assert torch.get_num_threads() == 2
    for run in runs:
        torch.testing.assert_close(run, expected)
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))
    assert step.engine == "traced"


def test_a_record_follows_the_weights_and_recomputes_steps():
    learner, tasks = ZOO["maml"].make(3), few_drawings(2)
    step = MetaGradient(learner, "traced", recompute=True)
    step(tasks)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(0.5)
    learner.zero_grad()
    with two_threads():
        found = [step(tasks), *(p.grad.clone() for p in learner.parameters())]
    assert step.engine == "traced"
    _, expected = gradients(learner, tasks, mode="loop")
    torch.testing.assert_close(found, expected)


def test_a_record_of_even_rows_is_not_taken_for_tasks_with_padding():
    learner, tasks = ZOO["maml"].make(3), few_drawings()
    weight = tasks.support.weight.clone()
    weight[1, 0] = 0
    padded = tasks._replace(support=tasks.support._replace(weight=weight))
    step = MetaGradient(learner, "traced")
    for given in (tasks, padded, tasks):
        learner.zero_grad()
        found = [step(given), *(p.grad.clone() for p in learner.parameters())]
        _, expected = gradients(learner, given, mode="loop")
        torch.testing.assert_close(found, expected)
    assert step.engine == "traced"


def test_a_record_draws_new_random_numbers_each_time_and_the_same_from_the_same_seed():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Dropout(), nn.Linear(72, 3))
    step = MetaGradient(kshot.maml(model, inner_lr=0.1), "traced")
    losses = []
    with two_threads():
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            losses.append(float(step(few_drawings(3))))
    torch.manual_seed(0)
    losses.append(float(MetaGradient(kshot.maml(model, inner_lr=0.1), "loop")(few_drawings(3))))
    assert step.engine == "traced"
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] == pytest.approx(losses[3], rel=1e-6)


def test_an_error_of_a_chunk_speaks_to_its_user():
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        MetaGradient(wide(), chunk=0)
