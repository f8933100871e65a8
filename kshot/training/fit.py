"""The outer loop of meta-training and of pretraining: sample a batch, compute the gradient, clip it, take a step."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn

from kshot.annotations import NonNegativeFloat, PositiveFloat, PositiveInt
from kshot.argument_checks import check_values
from kshot.inner.precision import Precision
from kshot.learner import Learner, set_progress
from kshot.objectives import check_task_values
from kshot.tasks.read_log import during, training
from kshot.tasks.source import TaskSource, check_source
from kshot.training.checkpoint import Snapshot, load_checkpoint
from kshot.training.closed_form import fit_closed_form, is_unfitted
from kshot.training.loss_scale import LossScale
from kshot.training.ranks import copy_from_first, failing_together, from_first, ranks
from kshot.training.step import MetaGradient, Mode
from kshot.training.stopping import is_stopping, step_by_step, stop
from kshot.training.timing import named
from kshot.types import Task, has_values, to

Schedule = Literal["cosine", "constant"]

log = logging.getLogger(__name__)


class Diverged(ArithmeticError):
    """The loss or its gradient is not finite. The parameters are those before that step."""


@dataclass(frozen=True)
class Settings:
    """Settings of the outer optimisation, which may change between rounds; most are arguments of `fit`.

    Attributes:
        horizon: steps of the schedule; "cosine" decays to a hundredth of `outer_lr`.
        size: tasks per step of meta-training, or examples per step of pretraining.
    """

    outer_lr: PositiveFloat = 1e-3
    clip: PositiveFloat | None = 10.0
    schedule: Schedule = "cosine"
    horizon: PositiveInt = 1000
    size: PositiveInt = 4
    weight_decay: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        check_values(vars(self), get_type_hints(Settings, include_extras=True))

    def rate(self, step: int) -> float:
        r"""The learning rate at a step: $\alpha (0.01 + 0.99 \cdot \tfrac12 (1 + \cos \pi t / H))$ for "cosine"."""
        if self.schedule == "constant":
            return self.outer_lr
        return self.outer_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / self.horizon, 1.0))))


@dataclass(frozen=True)
class Progress:
    """The number and the loss of a step, and the speed in steps per second."""

    step: int
    loss: float
    rate: float


class OuterLoop:
    """Adam over the parameters of a module, on batches that are a pure function of the step.

    Args:
        module: the module to train.
        sample: (step, size) -> a batch, a tree of tensors; pure.
        backward: (module, batch) -> mean loss (); adds the gradient to `.grad`.
        settings: may be replaced between steps.
        seed: determines, with the number of the step, all randomness inside the step, such as dropout.
        accept: called after each step whose loss and gradient are finite.
        fixed: prefix of the names of parameters that are not trained.
        may_be_frozen: whether a module without parameters to train is accepted; `run` then takes no step.
        gradient: what `backward` computes the gradient by, if its choices belong into checkpoints.
        scale: that of the losses which `backward` differentiates in float16; a step whose loss or gradient is not
            finite is taken again, with half the scale.

    Attributes:
        step: steps taken so far.
        processor_seconds: CPU time of the steps, summed over cores.
    """

    def __init__(
        self,
        module: nn.Module,
        sample: Callable[[int, int], Any],
        backward: Callable[[Any, Any], Tensor],
        settings: Settings,
        seed: int = 0,
        fixed: str | None = None,
        accept: Callable[[], None] = lambda: None,
        may_be_frozen: bool = False,
        gradient: MetaGradient | None = None,
        scale: LossScale | None = None,
    ) -> None:
        self.module, self.sample, self.backward, self.settings, self.seed = module, sample, backward, settings, seed
        self.accept, self.gradient, self.scale, self.fixed = accept, gradient, scale, fixed
        self.step, self.processor_seconds = 0, 0.0
        self.optimizer = torch.optim.Adam([torch.empty(0)])
        self.select_parameters()
        if not self.parameters and not may_be_frozen:
            raise ValueError("there is nothing to train: no parameter of the module requires a gradient")

    def select_parameters(self) -> None:
        """Train the parameters that now require a gradient; those that were trained before keep Adam's moments."""
        module = self.module
        trained = module.trained_parameters() if isinstance(module, Learner) else dict(module.named_parameters())
        self.parameters = {
            name: parameter
            for name, parameter in trained.items()
            if parameter.requires_grad and not (self.fixed and name.startswith(self.fixed))
        }
        tensors = [*self.parameters.values()] or [nn.Parameter(torch.empty(0))]  # Adam refuses an empty list
        moments = self.optimizer.state
        self.optimizer = torch.optim.Adam(tensors, lr=self.settings.outer_lr)
        self.optimizer.state.update({tensor: moments[tensor] for tensor in tensors if tensor in moments})
        self.device = tensors[0].device

    def run(
        self, steps: int, observe: Callable[[Progress], None] | None = None, deadline: float = math.inf
    ) -> list[float]:
        """Take `steps` steps, fewer if the clock (`time.monotonic`) passes `deadline`; return their losses.

        The module is in training mode during the steps, and in evaluation mode afterwards, also after an error.

        Raises `Diverged` if the loss or its gradient is not finite, and `Stopped`, between two steps, after a signal
        to end.
        """
        with training(self.module) if isinstance(self.module, Learner) else nullcontext(), step_by_step():
            return self._run(steps, observe, deadline)

    def _run(self, steps: int, observe: Callable[[Progress], None] | None, deadline: float) -> list[float]:
        losses: list[float] = []
        if not self.parameters:
            self.module.eval()
            return losses
        copy_from_first(self.module)
        self.module.train()
        started = time.monotonic()
        try:
            for number in range(steps):
                if number > 0 and deadline < math.inf and from_first(time.monotonic() >= deadline):
                    break
                step_started = time.process_time()
                with named("outer step"):
                    losses.append(self._step())
                self.processor_seconds += time.process_time() - step_started
                if observe is not None:
                    observe(Progress(self.step, losses[-1], len(losses) / (time.monotonic() - started)))
            with failing_together(asks=is_stopping()) as stops:
                pass
            if stops.by_any:
                stop()
        finally:
            self.module.eval()
        return losses

    def _step(self) -> float:
        with failing_together(asks=is_stopping()) as stops, named("tasks"):
            batch = to(self.sample(self.step, self.settings.size), self.device)
        if stops.by_any:
            stop()
        set_progress(self.module, min(self.step / self.settings.horizon, 1.0))
        while True:
            try:
                loss = self._attempt(batch)
            except Diverged as error:
                if self.scale is None:
                    raise
                if not self.scale.halve():
                    raise Diverged(f"{error}; or take precision='bfloat16', whose range is that of float32") from error
                log.info(
                    "step %d: a number of float16 is not finite: again, with a scale of %g", self.step, self.scale.value
                )
            else:
                if self.scale is not None:
                    self.scale.count()
                return loss

    def _attempt(self, batch: Any) -> float:
        """Take the step, unless the loss or its gradient is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with seeded(self.seed, self.step, *self._rank(), device=self.device):
                loss = float(self.backward(self.module, batch))
        except torch.linalg.LinAlgError as error:  # of a head that solves a system of features that exploded
            raise Diverged(f"step {self.step}: {error}; lower outer_lr or inner_lr, or normalise the inputs") from error
        with named("optimizer"):
            self._update(loss)
        return loss

    def _update(self, loss: float) -> None:
        """Take the step of the optimizer, by the gradients of the parameters."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"step {self.step}: the loss is {loss} and the norm of its gradient {norm}; "
                "lower outer_lr or inner_lr, clip the gradient, or look for extreme values in the data"
            )
        if self.step == 0:
            self._warn_of_missing_grads()
        rate = self.settings.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.settings.weight_decay:
            with torch.no_grad():
                for parameter in self.parameters.values():
                    if parameter.ndim > 1:
                        parameter.mul_(1 - rate * self.settings.weight_decay)
        self.optimizer.step()
        self.accept()
        self.step += 1

    def _rank(self) -> tuple[int, ...]:
        """The rank of this process as a part of the random seed; none for process 0, as for one process."""
        rank = ranks().rank
        return (rank,) if rank and self.gradient else ()

    def snapshot(self, meta: dict[str, Any]) -> Snapshot:
        """A copy of the module, the optimiser, the step and the settings for a checkpoint, with `meta` added."""
        progress = {"step": self.step, "settings": asdict(self.settings), "processor_seconds": self.processor_seconds}
        engine = {"engine": self.gradient.state()} if self.gradient else {}
        scale = {"scale": self.scale.state()} if self.scale else {}
        return Snapshot.of(self.module, self.optimizer, progress | engine | scale | meta)

    def load(self, folder: Path, *, engine: bool = True) -> dict[str, Any]:
        """Restore a checkpoint of a snapshot bitwise, and return its metadata; raises as `load_checkpoint`.

        Without `engine`, the engine of the gradient and what it has measured stay as they are.
        """
        meta = load_checkpoint(folder, self.module, self.optimizer)
        if self.gradient and engine and "engine" in meta:
            self.gradient.restore(meta["engine"])
        if self.scale and "scale" in meta:
            self.scale.restore(meta["scale"])
        self.step, self.settings = meta["step"], Settings(**meta["settings"])
        self.processor_seconds = meta["processor_seconds"]
        return meta

    def _warn_of_missing_grads(self) -> None:
        if names := [name for name, parameter in self.parameters.items() if parameter.grad is None]:
            warnings.warn(
                f"{len(names)} parameters get no gradient and stay as they are: {', '.join(names[:5])}"
                + (", …" if len(names) > 5 else ""),
                stacklevel=6,
            )


@contextmanager
def seeded(*key: int, device: torch.device | None = None) -> Iterator[None]:
    """A context in which torch's global random state is a function of `key`; it is restored afterwards."""
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        # `torch.manual_seed` formats the call stack for devices that are not in use, which takes a millisecond.
        seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        seed(hash(key) & (2**63 - 1))  # the hash of a tuple of ints is equal in all processes
        yield


def first_task(seed: int) -> int:
    """Index of the first training task, or pretraining batch, of a training with a seed.

    Different seeds, of at least 0, use disjoint ranges of one sequence of training tasks, so that the seed of the
    source alone determines the validation and test tasks.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return seed << 32


def meta_training_loop(
    learner: Learner,
    source: TaskSource,
    settings: Settings,
    *,
    mode: Mode = "loop",
    precision: Precision = "float32",
    seed: int = 0,
) -> OuterLoop:
    """The outer loop that meta-trains `learner` on the training tasks of `source`, from `first_task(seed)` on."""
    gradient = MetaGradient(learner, mode, precision=precision)

    def backward(module: nn.Module, tasks: Task) -> Tensor:
        return gradient(tasks)

    return OuterLoop(
        learner, training_tasks(learner, source, seed), backward, settings, seed,
        accept=gradient.update_buffers, may_be_frozen=True, gradient=gradient, scale=gradient.scale,
    )  # fmt: skip


def training_tasks(learner: Learner, source: TaskSource, seed: int) -> Callable[[int, int], Task]:
    """The tasks of each step of meta-training, (step, size) -> a stack of tasks, from `first_task(seed)` on."""
    check_source(source)
    first = first_task(seed)

    def sample(step: int, size: int) -> Task:
        tasks = source.stack("train", ranks().part_of(range(first + step * size, first + (step + 1) * size)))
        if has_values(tasks.support.weight):
            check_task_values(learner.objective, tasks)
        return tasks

    return sample


def fit(
    learner: Learner,
    source: TaskSource,
    *,
    steps: int,
    tasks_per_step: int = 4,
    outer_lr: float = 1e-3,
    clip: float | None = 10.0,
    schedule: Schedule = "cosine",
    weight_decay: float = 0.0,
    mode: Mode = "loop",
    precision: Precision = "float32",
    seed: int = 0,
    observe: Callable[[Progress], None] | None = None,
) -> list[float]:
    r"""Meta-train a learner, in place: Adam on $\frac1T \sum_t L_{\text{query}}(\theta)$.

    The learner is in evaluation mode afterwards, so that `predict` uses no dropout. A learner that is first fitted to
    the training split in closed form, such as `partial_pooling`, is so unless it was (see `fit_closed_form`); one whose
    estimates depend on trained parameters, such as `choose`, is fitted at the end.
    One without parameters to train, such as class means of frozen features, takes no step, and a warning says so.

    The processes of a process group (`torchrun`, `accelerate launch`) share the tasks of each step and end with the
    same weights; all of them call this function.

    Args:
        learner: the learner to train.
        source: source of the tasks; only the split "train" is read. `kshot.tasks.from_loader` makes one of a
            `DataLoader`.
        steps: number of outer steps.
        tasks_per_step: T, tasks per step.
        outer_lr: learning rate of Adam.
        clip: maximal norm of the gradient; None for no clipping.
        schedule: "cosine" over `steps`, or "constant".
        weight_decay: of parameters with at least two axes, decoupled from the gradient as in AdamW (arXiv:1711.05101).
        mode: engine of the meta-gradient: "loop", "vmap", "traced", "compiled", or "auto", which times the first steps
            with each of the first three and keeps the fastest. Gradients are equal up to rounding; since "auto" depends
            on timing, only the others give bitwise the same weights each time.
        precision: of convolutions and matrix products, by `torch.autocast`: "bfloat16", or "float16" for GPUs without
            it. Weights, inner updates, losses, BatchNorm and heads in closed form stay float32. In float16, losses are
            scaled by `LossScale`, and a step whose gradient is not finite is taken again with half the scale.
            Evaluation stays in float32.
        seed: random seed of dropout and of the choice of training tasks, not of validation and test tasks.
        observe: called with a `Progress` after each step.

    Returns:
        The loss of each step.

    Raises:
        Diverged: the loss or its gradient is not finite, in float16 with any scale from 1 on.
        TypeError: the source is no source of tasks.
        ValueError: targets that do not suit the objective, such as multi-hot rows for `objectives.classification`; a
            precision other than float32 for parameters that are not float32.

    Example:
        >>> learner = kshot.maml(kshot.models.mlp(1, 1), inner_lr=0.01, objective=kshot.objectives.mse)
        >>> len(fit(learner, kshot.sources.sinusoids(), steps=3, mode="vmap"))
        3
    """
    settings = Settings(outer_lr, clip, schedule, steps, tasks_per_step, weight_decay)
    if is_unfitted(learner):
        fit_closed_form(learner, source, after_training=False)
    with during(source, "training"):
        loop = meta_training_loop(learner, source, settings, mode=mode, precision=precision, seed=seed)
        if not loop.parameters:
            warnings.warn(
                "there is nothing to train: no parameter of the learner requires a gradient, so that fit takes no "
                "step; evaluate the learner as it is",
                stacklevel=2,
            )
        losses = loop.run(steps, observe)
    fit_closed_form(learner, source, after_training=True)
    return losses
