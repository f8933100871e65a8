import pytest
import torch
from torch import nn

import kshot
from kshot import objectives
from kshot.sources import sinusoids
from kshot.training.step import MetaGradient, meta_gradient
from kshot.training.trials import NUM_TRIALS


def learner(model=None):
    return kshot.maml(model or kshot.models.mlp(1, 1, [6]), inner_lr=0.05, steps=2, objective=objectives.mse)


def gradients(ours, gradient, tasks):
    ours.zero_grad()
    loss = gradient(tasks)
    return [loss, *(p.grad.clone() for p in ours.parameters())]


def test_gradients_add_up_like_those_of_backward():
    ours, tasks = learner(), sinusoids().stack("train", range(3))
    once = gradients(ours, MetaGradient(ours, "vmap"), tasks)[1:]
    for mode in ("loop", "vmap", "traced", "compiled"):
        meta_gradient(ours, tasks, "vmap")
        MetaGradient(ours, mode, backend="eager")(tasks)
        for parameter, grad in zip(ours.parameters(), once):
            torch.testing.assert_close(parameter.grad, 3 * grad)
        ours.zero_grad()
        meta_gradient(ours, tasks, "vmap")


def test_auto_measures_each_way_and_says_what_it_took():
    ours, tasks = learner(), sinusoids().stack("train", range(8))
    gradient = MetaGradient(ours)
    expected = gradients(ours, MetaGradient(ours, "loop"), tasks)
    for _ in range(3 * NUM_TRIALS):
        assert gradient.engine is None
        for a, b in zip(gradients(ours, gradient, tasks), expected):
            torch.testing.assert_close(a, b)
    assert gradient.engine in ("vmap", "traced")  # by far, for a small dense model
    assert f"{gradient.engine}, the fastest by measurement (loop" in gradient.choice


def test_auto_falls_back_to_the_loop_with_a_sentence():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if x.sum() > 0 else 1.0)  # what depends on values cannot be batched

    ours, tasks = learner(Branching(1, 1)), sinusoids().stack("train", range(3))
    gradient = MetaGradient(ours)
    expected = gradients(ours, MetaGradient(ours, "loop"), tasks)
    for _ in range(3):
        for a, b in zip(gradients(ours, gradient, tasks), expected):
            torch.testing.assert_close(a, b)
    assert gradient.engine == "loop"
    assert "loop, since vmap does not run: " in gradient.choice
    assert "the model (Branching) turns a tensor into a number" in gradient.choice
    assert "traced does not run: " in gradient.choice


def test_what_cannot_be_compiled_is_taken_as_vmap_with_a_sentence(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr("kshot.training.replay.compile_program", refuse)
    ours, tasks = learner(), sinusoids().stack("train", range(3))
    gradient = MetaGradient(ours, "compiled")
    expected = gradients(ours, MetaGradient(ours, "loop"), tasks)
    for a, b in zip(gradients(ours, gradient, tasks), expected):
        torch.testing.assert_close(a, b)
    assert gradient.choice == "vmap, since the step could not be compiled: no C++ compiler here"


def test_each_shape_of_tasks_is_compiled_once():
    ours, source = learner(), sinusoids()
    gradient = MetaGradient(ours, "compiled", backend="eager")
    for count in (3, 3, 5, 3, 5):
        tasks = source.stack("train", range(count))
        for a, b in zip(gradients(ours, gradient, tasks), gradients(ours, MetaGradient(ours, "loop"), tasks)):
            torch.testing.assert_close(a, b)
    assert len(gradient._replayer._entries) == 2


def test_a_step_compiled_before_an_update_follows_the_weights():
    ours, tasks = learner(), sinusoids().stack("train", range(3))
    ours.model.body[0].bias.requires_grad_(False)
    gradient = MetaGradient(ours, "compiled", backend="eager")
    gradient(tasks)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1)
    ours.zero_grad()
    found = [gradient(tasks), *(p.grad for p in ours.parameters() if p.requires_grad)]
    found = [t.clone() for t in found]
    ours.zero_grad()
    expected = [MetaGradient(ours, "loop")(tasks), *(p.grad for p in ours.parameters() if p.requires_grad)]
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", ["loop", "vmap", "traced", "compiled"])
@pytest.mark.parametrize("by_loop", [False, True])
def test_what_is_unused_has_no_gradient_and_does_not_end_the_recording(mode, by_loop):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(1, 1), nn.Linear(1, 1)
            if by_loop:
                self.used.weight.register_hook(lambda grad: 0.5 * grad)

        def forward(self, x):
            return self.used(x)

    ours, tasks = learner(Spare()), sinusoids().stack("train", range(3))
    gradient = MetaGradient(ours, mode, backend="eager")
    for _ in range(3):
        gradient(tasks)
    assert ours.model.spare.weight.grad is None
    assert ours.model.used.weight.grad is not None
    assert by_loop or not gradient.choice


def test_other_modes_are_refused():
    with pytest.raises(ValueError, match="mode must be one of auto, loop, vmap, traced, compiled, got 'fast'"):
        MetaGradient(learner(), "fast")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of the compiler's own modules
def test_the_real_compiler_gives_the_same_gradient():
    ours, tasks = learner(), sinusoids().stack("train", range(3))
    gradient = MetaGradient(ours, "compiled")
    for a, b in zip(gradients(ours, gradient, tasks), gradients(ours, MetaGradient(ours, "loop"), tasks)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not gradient.choice


@pytest.mark.parametrize("mode", ["traced", "compiled"])
def test_an_annealed_learner_is_not_recorded(mode):
    ours = kshot.learners.maml_pp(kshot.models.mlp(1, 1, [6]), inner_lr=0.05, steps=2, objective=objectives.mse)
    gradient = MetaGradient(ours, mode)
    assert gradient.engine == "vmap"
    assert "loss changes in the course of training" in gradient.choice


def test_the_choice_is_logged(caplog):
    ours, tasks = learner(), sinusoids().stack("train", range(2))
    gradient = MetaGradient(ours)
    with caplog.at_level("INFO", logger="kshot"):
        for _ in range(3 * NUM_TRIALS):
            gradient(tasks)
    assert gradient.choice in caplog.text
