"""Meta-training in bfloat16 and float16 has the gradients of float64, up to roundings of these types."""

import copy

import pytest
import torch
from torch import nn
from training.in_ranks import Tasks
from zoo import ZOO, Row, small_conv, wave

import kshot
from kshot import objectives
from kshot.app.spec import parse_spec
from kshot.inner.precision import Scales, autocast, mixing
from kshot.learners import SupportMean
from kshot.learners.gradient.proto_maml import proto_maml
from kshot.sources import sinusoids
from kshot.training.fit import Diverged, Settings, meta_training_loop
from kshot.training.loss_scale import LossScale
from kshot.training.step import MetaGradient
from kshot.types import tree_map

LOW = ("bfloat16", "float16")
ENGINES = {
    "loop": {"mode": "loop"},
    "vmap": {"mode": "vmap"},
    "one task traced": {"mode": "traced", "trace_one_task": True},
    "a stack traced": {"mode": "traced", "trace_one_task": False},
    "compiled": {"mode": "compiled", "backend": "eager"},
}
CASES = [
    (engine, precision, kind, order)
    for engine in ENGINES
    for precision in LOW
    for kind in ("mlp", "conv")
    for order in (1, 2)
    if kind == "mlp" or engine in ("loop", "vmap") or (order == 2 and engine != "compiled")
]


def eps(precision):
    return torch.finfo(getattr(torch, precision)).eps


def tasks_of(learner, count=3):
    tasks = Tasks(Row(lambda ways: learner)).stack("train", range(count))
    return tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, tasks)


def gradient_of(learner, tasks, exponent=None, **options):
    """The loss and its gradient, with what computed them."""
    learner.zero_grad()
    gradient = MetaGradient(learner, **options)
    if exponent is not None:
        gradient.scale.exponent = exponent
    loss = gradient(tasks)
    assert gradient.engine == options["mode"], gradient.choice
    grads = [parameter.grad.flatten() for parameter in learner.parameters() if parameter.grad is not None]
    return loss.double(), torch.cat(grads).double(), gradient


def exact(learner, tasks):
    wide = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tasks)
    loss, grad, _ = gradient_of(copy.deepcopy(learner).double(), wide, mode="loop")
    return loss, grad


def distance(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def maml(kind, **options):
    torch.manual_seed(0)
    if kind == "mlp":
        return kshot.maml(wave(), inner_lr=0.05, steps=2, objective=objectives.mse, **options)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(27, 3)
    )
    return kshot.maml(model, inner_lr=0.2, steps=1, **options)


def check(learner, tasks, precision, **options):
    """The loss and its gradient differ from the exact ones by some roundings, and not by none."""
    loss, grad, gradient = gradient_of(learner, tasks, precision=precision, **options)
    exact_loss, exact_grad = exact(learner, tasks)
    assert 0.02 * eps(precision) < distance(grad, exact_grad) < 4 * eps(precision)
    assert abs(loss - exact_loss) < eps(precision) * abs(exact_loss)
    assert all(parameter.dtype == torch.float32 for parameter in learner.parameters())
    return gradient


@pytest.mark.parametrize(
    ("engine", "precision", "kind", "order"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case[0] not in ("loop", "vmap") and case[1] == "float16"))
        for case in CASES
    ],
)
def test_each_engine_has_the_gradient_up_to_roundings(engine, precision, kind, order):
    learner = maml(kind, order=order)
    check(learner, tasks_of(learner), precision, **ENGINES[engine])


@pytest.mark.parametrize("engine", ["loop", "vmap", "a stack traced"])
def test_weights_that_do_not_adapt_have_a_gradient_though_first_order_steps_record_none(engine):
    """A rounded copy that an inner step made without a graph must not serve the query."""
    learner = maml("mlp", order=1, adaptable="2.*")
    check(learner, tasks_of(learner), "bfloat16", **ENGINES[engine])


@pytest.mark.parametrize("precision", LOW)
def test_convolutions_are_narrow_in_a_batch_of_tasks_too(precision):
    seen = []
    embedding = small_conv(None)
    embedding[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    learner = kshot.protonet(embedding)
    for mode in ("loop", "vmap"):
        gradient_of(learner, tasks_of(learner), mode=mode, precision=precision)
    assert set(seen) == {getattr(torch, precision)}


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("name", [name for name, row in ZOO.items() if row.make(3).trained_parameters()])
def test_every_learner_has_about_its_gradient(name, precision):
    torch.manual_seed(0)
    learner = copy.deepcopy(ZOO[name].make(3)).float()
    tasks = Tasks(ZOO[name]).stack("train", range(3))
    tasks = tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, tasks)
    torch.manual_seed(1)
    exact_loss, exact_grad = exact(learner, tasks)
    for mode in ("loop", "vmap"):
        torch.manual_seed(1)
        exponent = 10 if precision == "float16" else None
        loss, grad, _ = gradient_of(learner, tasks, exponent, mode=mode, precision=precision)
        assert distance(grad, exact_grad) < 60 * eps(precision)
        assert abs(loss - exact_loss) < 20 * eps(precision) * abs(exact_loss)


def test_moments_and_heads_are_in_float32():
    support = tasks_of(maml("conv"), 1).support
    support = kshot.Batch(*(leaf[0] for leaf in support))
    support = support._replace(inputs=support.inputs + 100)
    learner = proto_maml(small_conv(None), inner_lr=0.05, steps=1)
    with mixing("bfloat16", Scales()), autocast(support.weight.device):
        state = learner.adapt(support)
        prediction = learner.predict(state, support.inputs)
    assert {leaf.dtype for leaf in state["params"].values()} == {torch.float32}
    assert {leaf.dtype for moments in state["statistics"].values() for leaf in moments.values()} == {torch.float32}
    assert prediction.dtype == torch.float32


# scales -------------------------------------------------------------------------------------------------------------


def faint():
    """A learner whose losses, and with them its inner gradients, are below what float16 distinguishes from 0."""
    factor = 1e-7
    loss = objectives.mse._replace(loss=lambda prediction, batch: factor * objectives.mse.loss(prediction, batch))
    return kshot.maml(wave(), inner_lr=0.05 / factor, steps=2, objective=loss)


@pytest.mark.parametrize("engine", ["loop", "vmap", "one task traced", "a stack traced"])
def test_gradients_below_the_range_of_float16_are_right_with_a_scale(engine):
    torch.manual_seed(0)
    learner = faint()
    tasks = tasks_of(maml("mlp"))
    _, expected = exact(learner, tasks)
    options = ENGINES[engine] | {"precision": "float16"}
    _, without, _ = gradient_of(learner, tasks, 0, **options)
    _, scaled, _ = gradient_of(learner, tasks, 20, **options)
    assert (without == 0).double().mean() > 0.9
    assert distance(scaled, expected) < 0.01


def test_the_scale_follows_the_rule_of_pytorch():
    random = torch.Generator().manual_seed(0)
    ours, parameter = LossScale(16, interval=3), nn.Parameter(torch.ones(1))
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for _ in range(60):
        finite = bool(torch.rand((), generator=random) < 0.8)
        theirs.scale(parameter.sum()).backward()
        parameter.grad.fill_(1.0 if finite else torch.inf)
        theirs.step(optimizer)
        theirs.update()
        ours.count() if finite else ours.halve()
        assert ours.value == theirs.get_scale()
    assert ours.value != 2.0**16
    outer, inner = ours.scales(torch.device("cpu"))
    assert float(outer) == ours.value
    assert 1 <= float(outer / inner**2) <= 2


def test_a_step_that_overflows_is_taken_again_with_half_the_scale():
    loops = []
    for exponent in (50, None):
        learner = maml("mlp")
        loop = meta_training_loop(learner, sinusoids(), Settings(horizon=5), precision="float16")
        loop.scale.exponent = exponent or loops[0].scale.exponent
        losses = loop.run(1)
        assert (len(losses), loop.step, loop.scale.finite) == (1, 1, 1)
        loops.append(loop)
    assert 8 < loops[0].scale.exponent < 40
    for found, expected in zip(loops[0].module.parameters(), loops[1].module.parameters()):
        assert torch.equal(found, expected)
        state = [loop.optimizer.state[each] for loop, each in zip(loops, (found, expected))]
        assert float(state[0]["step"]) == 1
        assert torch.equal(state[0]["exp_avg"], state[1]["exp_avg"])


def test_a_recorded_step_follows_the_scale_and_survives_an_overflow():
    learner = maml("mlp")
    tasks = tasks_of(learner)
    gradient = MetaGradient(learner, "traced", trace_one_task=False, precision="float16")
    found = []
    for exponent in (50, 16, 10, 16):
        learner.zero_grad()
        gradient.scale.exponent = exponent
        gradient(tasks)
        found.append(torch.cat([parameter.grad.flatten() for parameter in learner.parameters()]))
    assert gradient.engine == "traced", gradient.choice
    assert len(gradient._replayer._entries) == 1
    assert not found[0].isfinite().all()
    assert torch.equal(found[1], found[3])
    assert distance(found[2], found[1]) < eps("float16")


def test_what_no_scale_makes_finite_stops_with_a_sentence_and_the_weights_of_before():
    learner = kshot.maml(wave(), inner_lr=1e30, objective=objectives.mse)
    before = copy.deepcopy(learner.state_dict())
    loop = meta_training_loop(learner, sinusoids(), Settings(), precision="float16")
    with pytest.raises(
        Diverged, match="step 0: the loss is nan.* or take precision='bfloat16', whose range is that of"
    ):
        loop.run(3)
    assert (loop.scale.value, loop.step, dict(loop.optimizer.state)) == (1, 0, {})
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    loop = meta_training_loop(learner, sinusoids(), Settings(), precision="bfloat16")
    with pytest.raises(Diverged, match="look for extreme values in the data$"):
        loop.run(1)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_resumed_training_in_float16_is_bitwise_the_uninterrupted_one(tmp_path, mode):
    def fresh():
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
        learner = kshot.maml(model, inner_lr=0.05, objective=objectives.mse)
        loop = meta_training_loop(learner, sinusoids(), Settings(horizon=20), mode=mode, precision="float16")
        loop.scale.interval = 3
        return loop

    whole, first, second = fresh(), fresh(), fresh()
    losses = whole.run(16)
    head = first.run(7)
    first.snapshot({}).write(tmp_path / "step-7")
    second.load(tmp_path / "step-7")
    assert second.scale.state() == first.scale.state()
    assert second.scale.finite == 1
    assert head + second.run(9) == losses
    assert whole.scale.state() == second.scale.state()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], value)


@pytest.mark.parametrize("precision", LOW)
def test_training_takes_about_the_steps_of_float32(precision):
    losses = {}
    for each in ("float32", precision):
        torch.manual_seed(0)
        learner = kshot.maml(kshot.models.mlp(1, 1), inner_lr=0.02, steps=3, objective=objectives.mse)
        losses[each] = kshot.fit(
            learner, sinusoids(), steps=40, tasks_per_step=6, outer_lr=0.01, mode="vmap", precision=each
        )
    first, last = (sum(losses[precision][part]) for part in (slice(10), slice(-10, None)))
    assert last < 0.8 * first
    assert losses[precision] != losses["float32"]
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.1)


def test_a_float16_run_keeps_its_scale_in_its_folder(tmp_path):
    options = {"steps_per_round": 3, "num_val_tasks": 2, "precision": "float16", "folder": tmp_path}
    run = kshot.run_until(maml("mlp"), sinusoids(), "mse <= 1e-9", budget=kshot.Budget(rounds=1), **options)
    again = kshot.run_until(maml("mlp"), sinusoids(), "mse <= 1e-9", budget=kshot.Budget(rounds=1), **options)
    assert run.rounds[0].train_loss == again.rounds[0].train_loss
    meta = kshot.files.read_json(tmp_path / run.rounds[0].checkpoint / "meta.json")
    assert meta["scale"] == {"exponent": 16, "finite": 3}


def test_pretraining_in_float16_has_about_the_losses_of_float32():
    losses = {}
    for precision in ("float32", "float16"):
        torch.manual_seed(0)
        losses[precision] = kshot.pretrain(wave(), sinusoids(), steps=5, batch=50, outer_lr=0.01, precision=precision)
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["float16"] != losses["float32"]


# memory -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", LOW)
def test_chunks_and_recomputed_steps_have_the_gradient_of_the_whole(precision):
    learner = maml("mlp")
    tasks = tasks_of(learner, 5)
    whole = gradient_of(learner, tasks, mode="vmap", precision=precision)
    chunks = gradient_of(learner, tasks, mode="vmap", precision=precision, chunk=2)
    assert distance(chunks[1], whole[1]) < 2 * eps(precision)
    stored, again = (
        gradient_of(learner, tasks, mode="loop", precision=precision, recompute=recompute)
        for recompute in (False, True)
    )
    torch.testing.assert_close(again[1], stored[1], rtol=0, atol=0)


def test_recomputed_steps_have_the_scale_of_the_first_time():
    torch.manual_seed(0)
    learner = faint()
    tasks = tasks_of(maml("mlp"))
    _, expected = exact(learner, tasks)
    _, found, _ = gradient_of(learner, tasks, 20, mode="loop", precision="float16", recompute=True)
    assert distance(found, expected) < 0.01


def test_memory_is_predicted_for_the_precision():
    learner = kshot.maml(kshot.models.mlp(1, 1, [128, 128]), inner_lr=0.01, steps=1, objective=objectives.mse)
    tasks = sinusoids(shots=200).stack("train", range(4))
    room, chunks = 2_500_000, {}
    for precision in ("float32", "bfloat16"):
        _, _, gradient = gradient_of(learner, tasks, mode="vmap", precision=precision, memory=room)
        chunks[precision] = gradient.plan.chunk
    assert chunks["float32"] < 4
    assert chunks["bfloat16"] is None


# refusals -----------------------------------------------------------------------------------------------------------


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, float16, got 'half'"):
        kshot.fit(maml("mlp"), sinusoids(), steps=1, precision="half")
    text = "name: a\nsource: sinusoids\nlearner: {kind: maml, inner_lr: 0.1}\nmodel: mlp\ntarget: mse <= 1\n"
    assert parse_spec(text + "train: {precision: bfloat16}", "a.yaml").train.precision == "bfloat16"
    assert parse_spec(text, "a.yaml").train.precision == "float32"
    with pytest.raises(
        ValueError,
        match=r"a.yaml, line 6: train\.precision: input should be 'float32', 'bfloat16' or 'float16', got 'half'",
    ):
        parse_spec(text + "train: {precision: half}", "a.yaml")


@pytest.mark.parametrize("precision", LOW)
def test_weights_of_another_type_are_refused(precision):
    with pytest.raises(ValueError, match="keeps weights in float32 .* but the parameter 'model.0.weight' is float64"):
        kshot.fit(maml("mlp").double(), sinusoids(), steps=1, precision=precision)
    with pytest.raises(ValueError, match="but the parameter '0.weight' is bfloat16: convert it by .float()"):
        kshot.pretrain(wave().bfloat16(), sinusoids(), steps=1, precision=precision)


@pytest.mark.parametrize("precision", LOW)
def test_an_operation_that_does_not_exist_in_a_type_is_named(precision):
    class Bessel(nn.Linear):
        def forward(self, x):
            return torch.special.bessel_j0(super().forward(x))

    learner = kshot.maml(Bessel(1, 1), inner_lr=0.1, objective=objectives.mse)
    for mode in ("loop", "vmap", "traced"):
        with pytest.raises(RuntimeError, match=f"does not run with precision='{precision}' on this device .*bessel_j0"):
            kshot.fit(learner, sinusoids(), steps=1, mode=mode, precision=precision)


def test_a_learner_without_parameters_takes_any_precision():
    with pytest.warns(UserWarning, match="nothing to train"):
        assert kshot.fit(SupportMean(objectives.mse), sinusoids(), steps=2, precision="float16") == []
