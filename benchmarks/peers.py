"""kshot's meta-gradient against that of higher, TorchOpt and learn2learn: time, memory, and whether they agree.

    make bench                                   # makes an environment for the peers, and runs this in it
    python benchmarks/peers.py [--only sinusoid] [--repeats 7] [--threads 1 2] [--json FILE] [--compile-all] [--long]

All ways of one work take turns in one process, so that what else the machine does falls on all alike; the order
turns with each round. A turn is as many steps as fill a quarter of a second, at least one: in a training a step
follows one of its own kind, not one of another library, whose code and data would still fill the caches. All
differentiate the same function to second order: the same module and initial weights, the same tasks, SGD at the same
rate inside, float32. Peers call a plain `nn.Module` in train mode, so BatchNorm normalises a query by the query itself;
kshot is asked for the same by `batchnorm="query"`. Each peer is used as its own documentation has it:
`higher.innerloop_ctx`, `torchopt.MetaSGD` with the state put back between tasks, `MAML.clone` and `adapt`. Where a peer
would take an attention kernel without a second derivative, it is given the plain one.

What the columns say:
    ms            of a step, median of the rounds, after one or more that do not count (tracing, compiling, warming)
    × peer        the median over the rounds of peer's time / this way's time, above 1 where this way is faster
    peak MiB      the most resident memory of a step above what the process held before it, in a process of its own,
                  after a step that does not count (Linux only)
    Δ32, Δ64      max |g - g'| / max |g'| over all parameters, g' the meta-gradient of the first peer; float32, float64
    rounding      the same of g in float32 and g' in float64: a Δ32 of this size is as good as none

The narrow ResNet-12 has a quarter of the usual channels (16-40-80-160), drops nothing, and sees colour images of 32×32
pixels, so that a step takes seconds. A compiled step takes tens of seconds to compile, minutes for Conv4: that is done
for the MLP, for all with `--compile-all`. 20 steps of all but the MLP need `--long`. What is not installed, or does not
run, is told.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

import kshot
from kshot import Batch, Task, objectives
from kshot.training.step import MetaGradient
from kshot.types import stack, unstack

STEPS = (1, 5, 20)  # inner ones
TURN = 0.25  # seconds

Step = Callable[[], Any]
"""Adds the mean meta-gradient over the tasks to the `.grad` of the model's parameters."""


class Work(NamedTuple):
    """What is differentiated: MAML with `steps` inner steps of SGD at `inner_lr`."""

    name: str
    model: Callable[[], nn.Module]
    tasks: Callable[[], Task]
    inner_lr: float
    steps: int
    small: bool = False  # quick to compile, and quick with 20 steps
    classes: bool = True

    @property
    def long(self) -> bool:
        return self.steps == 20 and not self.on_too_few

    @property
    def title(self) -> str:
        return f"{self.name}, {self.steps} step{'s' * (self.steps > 1)}"


class LSTMClassifier(nn.Module):
    def __init__(self, inputs: int = 8, hidden: int = 32, ways: int = 5) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(inputs, hidden, batch_first=True), nn.Linear(hidden, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class TransformerClassifier(nn.Module):
    def __init__(self, inputs: int = 8, width: int = 64, ways: int = 5) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.embed = nn.Linear(inputs, width)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)).mean(1))


def episodes(*shape: int, count: int = 4, ways: int = 5, shots: int = 1, queries: int = 15) -> Task:
    """Tasks of classes that are a random prototype each, plus noise."""
    prototypes = torch.randn(count, 1, ways, *shape)

    def batch(prototype: Tensor, each: int) -> Batch:
        inputs = prototype + 0.5 * torch.randn(each, ways, *shape)
        return Batch.of(inputs.flatten(0, 1), torch.arange(ways).repeat(each), ways=ways)

    return stack([Task(batch(prototype, shots), batch(prototype, queries)) for prototype in prototypes])


def works() -> list[Work]:
    mlp, conv = partial(kshot.models.mlp, 1, 1), partial(kshot.models.conv4, 1, 5)
    waves = partial(kshot.sources.sinusoids().stack, "train", range(25))
    resnet = partial(kshot.models.resnet12, 3, 5, widths=(16, 40, 80, 160), keep_prob=1.0)
    images, pictures = partial(episodes, 1, 28, 28), partial(episodes, 3, 32, 32)
    sequences = partial(episodes, 16, 8)
    return [
        *(Work("sinusoid MLP", mlp, waves, 0.01, k, small=True, classes=False) for k in STEPS),
        *(Work("Conv4-64", conv, images, 0.01, k) for k in STEPS),
        *(Work("narrow ResNet-12", resnet, pictures, 0.01, k) for k in STEPS),
        *(Work("LSTM", LSTMClassifier, sequences, 0.1, k) for k in STEPS),
        *(Work("transformer", TransformerClassifier, sequences, 0.01, k) for k in STEPS),
    ]


def kshot_step(mode: Any, work: Work, model: nn.Module, tasks: Task) -> Step:
    objective = objectives.classification if work.classes else objectives.mse
    learner = kshot.maml(model, inner_lr=work.inner_lr, steps=work.steps, objective=objective, batchnorm="query")
    gradient = MetaGradient(learner, mode)

    def step() -> None:
        gradient(tasks)
        if gradient.engine != mode:
            raise RuntimeError(gradient.choice)

    return step


def pairs(work: Work, tasks: Task) -> tuple[list[tuple[Tensor, ...]], Callable[[Tensor, Tensor], Tensor]]:
    """The tasks, and the loss, as users of the peers have them: (x, y) twice, y class ids for classification."""
    y = (lambda batch: batch.targets.argmax(-1)) if work.classes else (lambda batch: batch.targets)
    each = [(s.inputs, y(s), q.inputs, y(q)) for s, q in unstack(tasks)]
    return each, F.cross_entropy if work.classes else F.mse_loss


def higher_step(work: Work, model: nn.Module, tasks: Task) -> Step:
    import higher

    each, loss = pairs(work, tasks)
    inner = torch.optim.SGD(model.parameters(), lr=work.inner_lr)

    def step() -> None:
        for x, y, query_x, query_y in each:
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fast, optimizer):
                for _ in range(work.steps):
                    optimizer.step(loss(fast(x), y))
                (loss(fast(query_x), query_y) / len(each)).backward()

    return step


def torchopt_step(work: Work, model: nn.Module, tasks: Task) -> Step:
    import torchopt

    each, loss = pairs(work, tasks)
    optimizer = torchopt.MetaSGD(model, lr=work.inner_lr)
    start = torchopt.extract_state_dict(model, by="reference")
    optimizer_start = torchopt.extract_state_dict(optimizer, by="reference")

    def step() -> None:
        for x, y, query_x, query_y in each:
            for _ in range(work.steps):
                optimizer.step(loss(model(x), y))
            (loss(model(query_x), query_y) / len(each)).backward()
            torchopt.recover_state_dict(model, start)
            torchopt.recover_state_dict(optimizer, optimizer_start)

    return step


def learn2learn_step(work: Work, model: nn.Module, tasks: Task) -> Step:
    import learn2learn

    each, loss = pairs(work, tasks)
    maml = learn2learn.algorithms.MAML(model, lr=work.inner_lr, first_order=False)

    def step() -> None:
        for x, y, query_x, query_y in each:
            fast = maml.clone()
            for _ in range(work.steps):
                fast.adapt(loss(fast(x), y))
            (loss(fast(query_x), query_y) / len(each)).backward()

    return step


PEERS = {"higher": higher_step, "torchopt": torchopt_step, "learn2learn": learn2learn_step}
OURS = ("loop", "vmap", "traced", "compiled")


def prepare(work: Work, way: str, dtype: torch.dtype = torch.float32) -> tuple[list[nn.Parameter], Step]:
    """The parameters, and the step that puts the meta-gradient into their `.grad`."""
    torch.manual_seed(0)
    model = work.model().to(dtype).train()
    tasks = tree_map(lambda leaf: leaf.to(dtype), work.tasks())
    parameters = list(model.parameters())
    if way in OURS:
        taken = kshot_step(way, work, model, tasks)
    else:
        plain, taken_plainly = sdpa_kernel, PEERS[way](work, model, tasks)

        def taken() -> None:
            with plain(SDPBackend.MATH):
                taken_plainly()

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        taken()

    return parameters, step


def gradient(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])


def difference(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).abs().max() / reference.abs().max())


def peak_mib(work: Work, way: str) -> float | None:
    """The growth of resident memory by one step, measured in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed memory goes back at once
    command = [sys.executable, __file__, "--memory", work.title, way, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, env=os.environ | fixed, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def print_memory(work: Work, way: str) -> None:
    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    _, step = prepare(work, way)
    step()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step()
    print((status("VmHWM") - before) / 1024)


def turn(step: Step) -> float:
    """The seconds of a step, in a row of them."""
    started, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - started < TURN:
        step()
        count += 1
    return (time.perf_counter() - started) / count


def measure(work: Work, ways: list[str], repeats: int) -> list[dict[str, Any]]:
    """A row for each way, in the order of `ways`: the peers come first. One that does not run has the reason in it."""
    steps: dict[str, Step] = {}
    failures: dict[str, str] = {}
    found: dict[str, dict[torch.dtype, Tensor]] = {}
    for way in ways:
        try:
            found[way] = {}
            for dtype in (torch.float64, torch.float32):
                if dtype == torch.float64 and way == "compiled":
                    continue  # the same graph as vmap's; compiling it again says no more
                parameters, step = prepare(work, way, dtype)
                step()
                found[way][dtype] = gradient(parameters)
            step()
            steps[way] = step
        except Exception as error:  # whatever a peer may raise: it is told, and the others go on
            failures[way] = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0][:200]}"
    times: dict[str, list[float]] = {way: [] for way in steps}
    for number in range(repeats):
        order = list(steps)
        for way in order[number % len(order) :] + order[: number % len(order)]:
            times[way].append(1e3 * turn(steps[way]))
    rows: list[dict[str, Any]] = []
    for way in ways:
        row = {"work": work.title, "threads": torch.get_num_threads(), "way": way if way in PEERS else f"kshot {way}"}
        rows.append(row)
        if way in failures:
            row["failure"] = failures[way]
            continue
        values = times[way]
        peers = {peer: [p / v for p, v in zip(times[peer], values)] for peer in times if peer not in OURS}
        reference = found[next(iter(times))]
        row |= {
            "ms": statistics.median(values),
            "ms_all": values,
            "faster_than": {peer: statistics.median(ratios) for peer, ratios in peers.items()},
            "peak_mib": peak_mib(work, way),
            "difference": {
                str(dtype).removeprefix("torch."): difference(value, reference[dtype])
                for dtype, value in found[way].items()
            },
            "rounding": difference(found[way][torch.float32].double(), reference[torch.float64]),
        }
    return rows


def table(rows: list[dict[str, Any]], peers: list[str]) -> list[str]:
    """The rows as lines of a Markdown table."""
    names = ["work", "threads", "way", "ms", *(f"× {peer}" for peer in peers), "peak MiB", "Δ32", "Δ64", "rounding"]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [row["work"], str(row["threads"]), row["way"]]
        if "failure" in row:
            lines.append("| " + " | ".join([*cells, "does not run", *["–"] * (len(names) - 4)]) + " |")
            continue
        ratios = [row["faster_than"].get(peer) for peer in peers]
        delta = [*(row["difference"].get(dtype) for dtype in ("float32", "float64")), row["rounding"]]
        cells += [f"{row['ms']:.1f}"]
        cells += ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        cells += ["–" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"]
        cells += ["–" if value is None else f"{value:.0e}" for value in delta]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def installed(peer: str) -> bool:
    try:
        import_module(peer)
    except Exception as error:  # an old extension may fail by more than ImportError
        print(f"{peer} is left out: {type(error).__name__}: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="works whose title contains this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--compile-all", action="store_true", help="compile the larger models too: minutes each")
    parser.add_argument("--long", action="store_true", help="20 inner steps of the larger models too")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--memory", nargs=2, metavar=("TITLE", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.memory:
        torch.set_num_threads(*arguments.threads)
        title, way = arguments.memory
        return print_memory(next(work for work in works() if work.title == title), way)
    peers = [peer for peer in PEERS if installed(peer)]
    versions = {name: metadata.version(name) for name in ("torch", "kshot", *peers)}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"median of {arguments.repeats}, {platform.platform()}", flush=True)
    rows: list[dict[str, Any]] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for work in works():
            if arguments.only.lower() in work.title.lower() and (arguments.long or not work.long):
                ours = [way for way in OURS if way != "compiled" or work.small or arguments.compile_all]
                rows += measure(work, peers + ours, arguments.repeats)
                print(f"{work.title} is measured with {threads} threads", file=sys.stderr, flush=True)
    print("\n".join(table(rows, peers)))
    for row in rows:
        if "failure" in row:
            print(f"{row['work']}, {row['threads']} threads: {row['way']} does not run: {row['failure']}")
    if arguments.json:
        figures = {"versions": versions, "rows": rows}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
