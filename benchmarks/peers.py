"""Compare kshot's meta-gradient with those of other libraries: time, memory and agreement.

    make bench                                   # create an environment with the peers, and run this in it
    python benchmarks/peers.py [--only sinusoid] [--repeats 7] [--threads 1 2] [--json FILE] [--compile-all] [--long]
                               [--modes loop vmap] [--device cuda] [--tasks 32]

All methods are interleaved in one process, so that other load on the machine affects them equally; the order rotates
with each round. A round runs each method for a quarter of a second, at least one step: in training, a step follows a
step of the same method, and not one of another library that leaves its code and data in the caches. All methods
differentiate the same function to second order: the same module and initial weights, the same tasks, inner SGD with the
same rate, float32. Peers call a plain `nn.Module` in train mode, so that BatchNorm normalises queries by query
statistics; kshot uses `batchnorm="query"` to match. Each peer is used as documented: `higher.innerloop_ctx`,
`torchopt.MetaSGD` with the state recovered between tasks, `MAML.clone` and `adapt`. Where a peer would use an attention
kernel without a second derivative, the plain kernel is selected. metalearn is parallel-metalearn, by its `MAML.step`
and with its own BatchNorm.

Columns:
    ms            time of a step, median over the rounds, after one or more warm-up steps (tracing, compiling)
    × peer        median over the rounds of the peer's time / this method's time; above 1 if this method is faster
    peak MiB      peak resident memory of a step above that before it, in a separate process, after a warm-up step
                  (Linux only); on a GPU, of what PyTorch allocates there
    Δ32, Δ64      max |g - g'| / max |g'| over all parameters, g' the meta-gradient of the first peer; float32, float64
    rounding      the same for g in float32 and g' in float64: a Δ32 of this size is rounding

The narrow ResNet-12 has a quarter of the usual channels (16-40-80-160), no dropout, and colour images of 32×32 pixels,
so that a step takes seconds. Compilation takes tens of seconds, or minutes for Conv4; it is done for the MLP, and for
all problems with `--compile-all`. 20 inner steps of problems other than the MLP need `--long`. Methods that are not
installed or fail are reported.
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
from itertools import repeat
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

STEPS = (1, 5, 20)  # inner steps
ROUND_SECONDS = 0.25

Step = Callable[[], Any]
"""A function that adds the mean meta-gradient over the tasks to the `.grad` of the model's parameters."""


class Work(NamedTuple):
    """A problem: MAML with `steps` inner steps of SGD at `inner_lr`."""

    name: str
    model: Callable[[], nn.Module]
    tasks: Callable[[], Task]
    inner_lr: float
    steps: int
    small: bool = False  # fast to compile, and fast with 20 steps
    classes: bool = True

    @property
    def long(self) -> bool:
        return self.steps == 20 and not self.small

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
    """Tasks with a random prototype per class, plus noise."""
    prototypes = torch.randn(count, 1, ways, *shape)

    def batch(prototype: Tensor, examples: int) -> Batch:
        inputs = prototype + 0.5 * torch.randn(examples, ways, *shape)
        return Batch.of(inputs.flatten(0, 1), torch.arange(ways).repeat(examples), ways=ways)

    return stack([Task(batch(prototype, shots), batch(prototype, queries)) for prototype in prototypes])


def works(num_tasks: int | None = None) -> list[Work]:
    """The problems; by default of 25 tasks of the MLP, and 4 of others."""
    mlp, conv = partial(kshot.models.mlp, 1, 1), partial(kshot.models.conv4, 1, 5)
    waves = partial(kshot.sources.sinusoids().stack, "train", range(num_tasks or 25))
    resnet = partial(kshot.models.resnet12, 3, 5, widths=(16, 40, 80, 160), keep_prob=1.0)
    drawn = partial(episodes, count=num_tasks or 4)
    images, pictures = partial(drawn, 1, 28, 28), partial(drawn, 3, 32, 32)
    sequences = partial(drawn, 16, 8)
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
    """The tasks and the loss in the format of the peers: (x, y) twice, with class ids as y for classification."""
    y = (lambda batch: batch.targets.argmax(-1)) if work.classes else (lambda batch: batch.targets)
    examples = [(s.inputs, y(s), q.inputs, y(q)) for s, q in unstack(tasks)]
    return examples, F.cross_entropy if work.classes else F.mse_loss


def higher_step(work: Work, model: nn.Module, tasks: Task) -> Step:
    import higher

    examples, loss = pairs(work, tasks)
    inner = torch.optim.SGD(model.parameters(), lr=work.inner_lr)

    def step() -> None:
        for x, y, query_x, query_y in examples:
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fast, optimizer):
                for _ in range(work.steps):
                    optimizer.step(loss(fast(x), y))
                (loss(fast(query_x), query_y) / len(examples)).backward()

    return step


def torchopt_step(work: Work, model: nn.Module, tasks: Task) -> Step:
    import torchopt

    examples, loss = pairs(work, tasks)
    optimizer = torchopt.MetaSGD(model, lr=work.inner_lr)
    start = torchopt.extract_state_dict(model, by="reference")
    optimizer_start = torchopt.extract_state_dict(optimizer, by="reference")

    def step() -> None:
        for x, y, query_x, query_y in examples:
            for _ in range(work.steps):
                optimizer.step(loss(model(x), y))
            (loss(model(query_x), query_y) / len(examples)).backward()
            torchopt.recover_state_dict(model, start)
            torchopt.recover_state_dict(optimizer, optimizer_start)

    return step


def learn2learn_step(work: Work, model: nn.Module, tasks: Task) -> Step:
    import learn2learn

    examples, loss = pairs(work, tasks)
    maml = learn2learn.algorithms.MAML(model, lr=work.inner_lr, first_order=False)

    def step() -> None:
        for x, y, query_x, query_y in examples:
            fast = maml.clone()
            for _ in range(work.steps):
                fast.adapt(loss(fast(x), y))
            (loss(fast(query_x), query_y) / len(examples)).backward()

    return step


def _with_batchnorm_of_metalearn(module: nn.Module) -> None:
    """Replace BatchNorms, in place: the second derivative of PyTorch's is wrong under `vmap` and `torch.func.grad`."""
    from metalearn.nn_models.basic_layers.BatchNormalization import BatchNorm

    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            norm = BatchNorm(part.num_features, eps=part.eps, track_running_stats=False)
            norm.weight, norm.bias = part.weight, part.bias
            setattr(module, name, norm)
        else:
            _with_batchnorm_of_metalearn(part)


def metalearn_step(work: Work, model: nn.Module, tasks: Task) -> Step:
    """Of parallel-metalearn, whose backbones take keywords, and whose step is also one of the outer optimizer."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.model_wrappers import MAML_Model

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, **_: Any) -> Tensor:
            return self.model(x)

    class Loss(nn.Module):
        def forward(self, out_dict: Any, targets: Any, **_: Any) -> tuple[Tensor, Tensor]:
            value = loss(out_dict["logits"], targets["labels"])
            return value, value.detach()

    class Identity(nn.Module):
        def forward(self, x: Tensor, **_: Any) -> Tensor:
            return x

    examples, loss = pairs(work, tasks)
    x, y, query_x, query_y = (torch.stack(parts) for parts in zip(*examples))
    _with_batchnorm_of_metalearn(model)
    wrapped = MAML_Model(Plain(), head=Identity())
    inner = InnerSGD(wrapped.get_fast_weights(), inner_lr=work.inner_lr, learn_lr=False)
    for rate in inner.parameters():
        rate.data = torch.full_like(rate, work.inner_lr, dtype=x.dtype)
    maml = MAML(
        model=wrapped, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), inner_optimizer=inner,
        support_loss_fn=Loss(), inner_steps=work.steps, chunk_size=len(x), device=x.device,
    )  # fmt: skip
    batches = repeat((x, {"labels": y}, query_x, {"labels": query_y}))
    return lambda: maml.step(batches)


PEERS = {
    "higher": higher_step,
    "torchopt": torchopt_step,
    "learn2learn": learn2learn_step,
    "metalearn": metalearn_step,
}
DISTRIBUTIONS = {"metalearn": "parallel-metalearn"}
OURS = ("loop", "vmap", "traced", "compiled")


def prepare(
    work: Work, method: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[list[nn.Parameter], Step]:
    """The parameters, and a step that puts the meta-gradient into their `.grad`."""
    torch.manual_seed(0)
    model = work.model().to(device, dtype).train()
    tasks = tree_map(lambda leaf: leaf.to(device, dtype), work.tasks())
    parameters = list(model.parameters())
    if method in OURS:
        add_gradient = kshot_step(method, work, model, tasks)
    else:
        peer_step = PEERS[method](work, model, tasks)

        def add_gradient() -> None:
            with sdpa_kernel(SDPBackend.MATH):
                peer_step()

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        add_gradient()
        if device != "cpu":
            torch.accelerator.synchronize(device)

    return parameters, step


def gradient(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])


def difference(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).abs().max() / reference.abs().max())


def peak_mib(work: Work, method: str, device: str, num_tasks: int | None) -> float | None:
    """Growth of resident memory by one step, measured in a separate process; on a GPU, of its memory in this one."""
    if device != "cpu":
        return gpu_peak_mib(prepare(work, method, device=device)[1])
    if not Path("/proc/self/clear_refs").exists():
        return None
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # return freed memory at once
    command = [sys.executable, __file__, "--memory", work.title, method, "--threads", str(torch.get_num_threads())]
    command += [] if num_tasks is None else ["--tasks", str(num_tasks)]
    done = subprocess.run(command, env=os.environ | fixed, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def gpu_peak_mib(step: Step) -> float:
    """Growth of the memory that PyTorch allocates on the GPU by one step."""
    step()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def print_memory(work: Work, method: str) -> None:
    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    _, step = prepare(work, method)
    step()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    step()
    print((status("VmHWM") - before) / 1024)


def seconds_per_step(step: Step) -> float:
    """Seconds per step, over at least `ROUND_SECONDS`."""
    started, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - started < ROUND_SECONDS:
        step()
        count += 1
    return (time.perf_counter() - started) / count


def measure(work: Work, methods: list[str], repeats: int, device: str, num_tasks: int | None) -> list[dict[str, Any]]:
    """A row for each method, in the order of `methods`, peers first. The row of a method that fails has the reason."""
    steps: dict[str, Step] = {}
    failures: dict[str, str] = {}
    gradients: dict[str, dict[torch.dtype, Tensor]] = {}
    for method in methods:
        try:
            gradients[method] = {}
            for dtype in (torch.float64, torch.float32):
                if dtype == torch.float64 and method == "compiled":
                    continue  # the same graph as vmap's
                parameters, step = prepare(work, method, dtype, device)
                step()
                gradients[method][dtype] = gradient(parameters)
            step()
            steps[method] = step
        except Exception as error:  # a peer may raise anything: report it and continue
            failures[method] = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0][:200]}"
    times: dict[str, list[float]] = {method: [] for method in steps}
    for number in range(repeats):
        order = list(steps)
        for method in order[number % len(order) :] + order[: number % len(order)]:
            times[method].append(1e3 * seconds_per_step(steps[method]))
    rows: list[dict[str, Any]] = []
    for method in methods:
        row = {
            "problem": work.title,
            "threads": torch.get_num_threads(),
            "method": method if method in PEERS else f"kshot {method}",
        }
        rows.append(row)
        if method in failures:
            row["failure"] = failures[method]
            continue
        values = times[method]
        peers = {peer: [p / v for p, v in zip(times[peer], values)] for peer in times if peer not in OURS}
        reference = gradients[next(iter(times))]
        row |= {
            "ms": statistics.median(values),
            "ms_all": values,
            "faster_than": {peer: statistics.median(ratios) for peer, ratios in peers.items()},
            "peak_mib": peak_mib(work, method, device, num_tasks),
            "difference": {
                str(dtype).removeprefix("torch."): difference(value, reference[dtype])
                for dtype, value in gradients[method].items()
            },
            "rounding": difference(gradients[method][torch.float32].double(), reference[torch.float64]),
        }
    return rows


def table(rows: list[dict[str, Any]], peers: list[str]) -> list[str]:
    """The rows as lines of a Markdown table."""
    names = [
        "problem",
        "threads",
        "method",
        "ms",
        *(f"× {peer}" for peer in peers),
        "peak MiB",
        "Δ32",
        "Δ64",
        "rounding",
    ]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [row["problem"], str(row["threads"]), row["method"]]
        if "failure" in row:
            lines.append("| " + " | ".join([*cells, "fails", *["–"] * (len(names) - 4)]) + " |")
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
    except Exception as error:  # an old extension may raise more than ImportError
        print(f"{peer} is not available: {type(error).__name__}: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="only problems whose title contains one of these")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    parser.add_argument("--compile-all", action="store_true", help="compile the larger models as well: minutes each")
    parser.add_argument("--long", action="store_true", help="20 inner steps of the larger models as well")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--modes", nargs="+", choices=OURS, default=OURS, help="kshot's modes; by default all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tasks", type=int, help="number of tasks of each problem; by default 25 of the MLP, else 4")
    parser.add_argument("--memory", nargs=2, metavar=("TITLE", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.memory:
        torch.set_num_threads(*arguments.threads)
        title, method = arguments.memory
        return print_memory(next(work for work in works(arguments.tasks) if work.title == title), method)
    peers = [peer for peer in PEERS if installed(peer)]
    versions = {name: metadata.version(DISTRIBUTIONS.get(name, name)) for name in ("torch", "kshot", *peers)}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    machine = platform.platform() if arguments.device == "cpu" else torch.cuda.get_device_name(arguments.device)
    print(f"median of {arguments.repeats}, {machine}", flush=True)
    rows: list[dict[str, Any]] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for work in works(arguments.tasks):
            if any(part.lower() in work.title.lower() for part in arguments.only) and (arguments.long or not work.long):
                ours = [
                    method for method in arguments.modes if method != "compiled" or work.small or arguments.compile_all
                ]
                rows += measure(work, peers + ours, arguments.repeats, arguments.device, arguments.tasks)
                print(f"{work.title}, {threads} threads: done", file=sys.stderr, flush=True)
    print("\n".join(table(rows, peers)))
    for row in rows:
        if "failure" in row:
            print(f"{row['problem']}, {row['threads']} threads: {row['method']} fails: {row['failure']}")
    if arguments.json:
        figures = {"versions": versions, "rows": rows}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
