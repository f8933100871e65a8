import json
import math
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import Batch, objectives
from kshot.files import DamagedFile
from kshot.sources import sinusoids
from kshot.tasks import ClassTasks
from kshot.training.checkpoint import (
    META,
    OPTIMIZER,
    WEIGHTS,
    Checkpoints,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from kshot.training.fit import Diverged, Settings, meta_training_loop, seeded
from kshot.training.pretrain import Classifier, pretraining_loop


def learner(**options):
    return kshot.maml(kshot.models.mlp(1, 1, [8]), **({"inner_lr": 0.05, "objective": objectives.mse} | options))


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_one_outer_step_is_adam_on_the_mean_query_loss():
    ours, source = learner(), sinusoids()
    reference = learner()
    reference.load_state_dict(ours.state_dict())
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    losses = kshot.fit(ours, source, steps=2, tasks_per_step=3, outer_lr=0.01, clip=None, schedule="constant")
    expected = []
    for step in range(2):
        optimizer.zero_grad()
        loss = torch.stack([reference(source.task("train", 3 * step + i)) for i in range(3)]).mean()
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_training_learns():
    ours, source = kshot.maml(kshot.models.mlp(1, 1), inner_lr=0.02, steps=3, objective=objectives.mse), sinusoids()
    before = kshot.evaluate(ours, source, num_tasks=50, audit=False).metrics["mse"].mean
    kshot.fit(ours, source, steps=150, tasks_per_step=10, outer_lr=0.005, mode="vmap")
    assert kshot.evaluate(ours, source, num_tasks=50, audit=False).metrics["mse"].mean < 0.8 * before


def test_the_gradient_is_clipped():
    loop = meta_training_loop(learner(), sinusoids(), Settings(clip=1e-3))
    loop.run(1)
    norm = torch.stack([p.grad.norm() for p in loop.parameters.values()]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_cosine_falls_from_the_rate_to_a_hundredth():
    settings = Settings(outer_lr=1.0, horizon=100)
    rates = [settings.rate(step) for step in range(150)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.505)
    assert rates[100:] == pytest.approx([0.01] * 50)
    assert all(a >= b for a, b in zip(rates, rates[1:]))


@pytest.mark.parametrize(
    "options", [{"outer_lr": 0.0}, {"clip": 0.0}, {"size": 0}, {"horizon": 0}, {"schedule": "step"}]
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ValueError, match="must be|needs at least"):
        Settings(**options)


def test_a_resumed_training_is_bitwise_the_uninterrupted_one(tmp_path):
    def fresh():
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
        return meta_training_loop(
            kshot.maml(model, inner_lr=0.05, objective=objectives.mse), sinusoids(), Settings(horizon=20)
        )

    whole = fresh()
    losses = whole.run(20)
    first = fresh()
    head = first.run(8)
    first.snapshot({"note": 1}).write(tmp_path / "step-8")
    second = fresh()
    assert second.load(tmp_path / "step-8")["note"] == 1
    torch.rand(3)  # global random numbers must not matter
    assert head + second.run(12) == losses
    assert same(weights(second.module), weights(whole.module))


def test_randomness_inside_a_step_is_a_function_of_seed_and_step_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    draws = []
    for key in ((0, 1), (0, 1), (0, 2), (1, 1)):
        with seeded(*key):
            draws.append(float(torch.rand(())))
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched():
    loop = meta_training_loop(learner(inner_lr=1e30), sinusoids(), Settings())
    before = weights(loop.module)
    with pytest.raises(Diverged, match="step 0: the loss is .* lower outer_lr or inner_lr"):
        loop.run(1)
    assert same(weights(loop.module), before)


def test_parameters_without_a_gradient_are_named_once():
    model = kshot.models.mlp(1, 1, [4])
    model.spare = nn.Linear(1, 1)
    model.forward = lambda x: model.head(model.body(x))
    loop = meta_training_loop(kshot.maml(model, inner_lr=0.1, objective=objectives.mse), sinusoids(), Settings())
    before = model.spare.weight.clone()
    with pytest.warns(UserWarning, match="2 parameters get no gradient .* model.spare.weight, model.spare.bias"):
        loop.run(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run(1)
    assert torch.equal(model.spare.weight, before)


def test_a_learner_without_parameters_takes_no_step_and_that_is_said():
    source, learner = images(), kshot.learners.nearest_centroid()
    with pytest.warns(UserWarning, match="nothing to train.* evaluate the learner as it is"):
        assert kshot.fit(learner, source, steps=3) == []
    with pytest.raises(ValueError, match="nothing to train"):
        kshot.pretrain(nn.Flatten(), source, steps=1, objective="contrastive")


@pytest.mark.parametrize("mode", ["loop", "auto"])
def test_a_run_of_a_learner_without_parameters_ends_after_one_round_with_its_validation(mode, tmp_path):
    learner, options = kshot.protonet(nn.Flatten()), {"num_val_tasks": 4, "steps_per_round": 5, "mode": mode}
    run = kshot.run_until(learner, images(), "accuracy >= 1.01", folder=tmp_path, **options)
    assert [(each.step, each.train_loss, each.diverged) for each in run.rounds] == [(0, None, None)]
    expected = kshot.evaluate(learner, images(), split="val", num_tasks=4, audit=False).metrics["accuracy"]
    assert run.best.val["accuracy"][:3] == pytest.approx(expected[:3], nan_ok=True)
    again = kshot.run_until(learner, images(), "accuracy >= 1.01", folder=tmp_path, **options)  # from the checkpoint
    assert {name: each.mean for name, each in again.best.val.items()} == {
        name: each.mean for name, each in run.best.val.items()
    }


def images() -> ClassTasks:
    import numpy as np

    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (12, 1, 1, 16, 16))
    noisy = np.clip(patterns + random.normal(0, 30, (12, 6, 1, 16, 16)), 0, 255).astype(np.uint8).reshape(72, 1, 16, 16)
    rows = {f"class {c}": range(6 * c, 6 * c + 6) for c in range(12)}
    cut = {"train": range(6), "val": range(6, 9), "test": range(9, 12)}
    classes = {split: {f"class {c}": rows[f"class {c}"] for c in part} for split, part in cut.items()}
    return ClassTasks(noisy, classes, ways=3, shots=1, queries=3)


def test_pretraining_learns_the_training_classes_and_leaves_a_head_of_zeros():
    model = kshot.models.conv4(1, 3, channels=8, size=16)
    losses = kshot.pretrain(model, images(), steps=40, batch=24, outer_lr=3e-3)
    assert losses[0] == pytest.approx(math.log(6), rel=0.5)
    assert losses[-1] < 0.5 * losses[0]
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    assert model.body[0].weight.is_contiguous()
    assert int(model.body[1].num_batches_tracked) == 40


def test_pretraining_features_are_what_reaches_the_head():
    model = kshot.models.conv4(1, 3, channels=8, size=16).eval()
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(Classifier(model, 6, x).features(x), model.body(x))
    bare = kshot.models.conv4(1, channels=8, size=16).eval()
    torch.testing.assert_close(Classifier(bare, 6, x).features(x), bare(x))


def test_pretraining_without_classes_fits_the_bag_of_examples():
    model = kshot.models.mlp(1, 1)
    losses = kshot.pretrain(model, sinusoids(), steps=30, batch=200)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_resumed_pretraining_is_bitwise_the_uninterrupted_one(tmp_path):
    def fresh():
        torch.manual_seed(3)
        return pretraining_loop(kshot.models.conv4(1, 3, channels=4, size=16), images(), Settings(size=8, horizon=6))

    whole, first, second = fresh(), fresh(), fresh()
    whole.run(6)
    first.run(2)
    first.snapshot({}).write(tmp_path / "a")
    second.load(tmp_path / "a")
    second.run(4)
    assert same(weights(second.module), weights(whole.module))


# checkpoints --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_cut_short_says_so_and_changes_nothing(tmp_path):
    model = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "a", model, None, {"step": 1})
    file = tmp_path / "a" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-5])
    other = nn.Linear(2, 2)
    before = weights(other)
    with pytest.raises(
        ValueError, match=r"weights.safetensors is damaged: its bytes are not those that .*meta.json says"
    ):
        load_checkpoint(tmp_path / "a", other)
    assert same(weights(other), before)
    with pytest.raises(ValueError, match="is missing"):
        load_checkpoint(tmp_path / "b", other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 2), r"weight is \(2, 2\) there and \(2, 3\) here"),
        (nn.Sequential(nn.Linear(2, 2)), "it lacks 0.bias"),
        (nn.Linear(2, 2, bias=False), "it has an unknown bias"),
        (nn.Linear(2, 2).double(), "weight is torch.float32 there and torch.float64 here"),
    ],
)
def test_a_checkpoint_of_another_model_says_how_it_differs(tmp_path, other, message):
    save_checkpoint(tmp_path / "a", nn.Linear(2, 2), None, {})
    with pytest.raises(ValueError, match=f"is of another model: .*{message}"):
        load_checkpoint(tmp_path / "a", other)


def test_reading_changes_nothing_and_what_others_put_there_is_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for name in ("a", "b", "c", "d"):
        save_checkpoint(tmp_path / name, nn.Linear(1, 1), None, {})
    shutil.copytree(tmp_path / "a", tmp_path / "my-backup")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".DS_Store").write_text("of a file manager")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    half = tmp_path / ".step-2.0123.part"  # what a kill in the middle of writing leaves
    half.mkdir()
    (half / WEIGHTS).write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert Checkpoints(tmp_path).latest() == tmp_path / "d"
    assert sorted(tmp_path.rglob("*")) == before
    checkpoints.prune("b")
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".part"))
    assert left == [".DS_Store", ".git", "b", "c", "d", "my-backup"]
    assert [path.name for path in tmp_path.glob(".*.part/*")] == ["notes.txt"]
    assert checkpoints.latest() == tmp_path / "d"


def test_the_latest_is_that_of_the_highest_number_whatever_the_clock_says(tmp_path):
    for number, name in enumerate(("round-0001", "step-0000007", "round-0002")):
        save_checkpoint(tmp_path / name, nn.Linear(1, 1), None, {})
        os.utime(tmp_path / name, (1e9 - number, 1e9 - number))
    assert Checkpoints(tmp_path).latest() == tmp_path / "round-0002"
    Checkpoints(tmp_path).prune()
    assert {path.name for path in tmp_path.iterdir()} == {"step-0000007", "round-0002"}
    assert Checkpoints(tmp_path).free("round-0002") == "round-0002-2"
    with pytest.raises(OSError, match="round-0002"):
        save_checkpoint(tmp_path / "round-0002", nn.Linear(1, 1), None, {})
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, META])
def test_one_flipped_bit_of_the_newest_goes_back_to_the_one_before_it(tmp_path, name, caplog):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for folder in ("old", "new"):
        save_checkpoint(tmp_path / folder, model, optimizer, {"seconds": 1.5})
    content = bytearray((tmp_path / "new" / name).read_bytes())
    for offset in np.random.default_rng(0).permutation(len(content))[:40].tolist():
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        (tmp_path / "new" / name).write_bytes(changed)
        if name == META and json.loads(content) == _parsed(changed):
            continue  # such as a space that became a tabulator
        caplog.clear()
        assert Checkpoints(tmp_path).latest() == tmp_path / "old", offset
        assert name in caplog.text
        with pytest.raises(DamagedFile, match=name):
            load_checkpoint(tmp_path / "new", model, optimizer)
    (tmp_path / "old" / name).unlink()
    (tmp_path / "new" / name).write_bytes(content[:-3])
    with pytest.raises(DamagedFile, match="no checkpoint in .* is undamaged"):
        Checkpoints(tmp_path).latest()


def _parsed(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_one_flipped_bit_of_a_state_is_found(tmp_path):
    save_state(tmp_path / "s", {"head": {"w": torch.randn(4, 3), "b": torch.zeros(())}}, {"classes": "a,b"})
    content = (tmp_path / "s").read_bytes()
    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        (tmp_path / "s").write_bytes(changed)
        with pytest.raises(DamagedFile, match="s is damaged"):
            load_state(tmp_path / "s")


def test_states_that_are_no_nested_dicts_are_refused(tmp_path):
    for state in ({"a": [torch.ones(1)]}, {"a/b": torch.ones(1)}, {1: torch.ones(1)}):
        with pytest.raises(TypeError, match="a state"):
            save_state(tmp_path / "s", state, {})


def test_a_state_file_that_is_none(tmp_path):
    (tmp_path / "s").write_bytes(b"not a state")
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_state(tmp_path / "s")


def test_tied_weights_are_saved_and_loaded(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save_checkpoint(tmp_path / "a", model, None, {})
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    other[1].weight = other[0].weight
    load_checkpoint(tmp_path / "a", other)
    assert other[1].weight is other[0].weight
    assert torch.equal(other[0].weight, model[0].weight)


def test_saving_a_state_replaces_it_whole(tmp_path):
    for value in (1.0, 2.0):
        save_state(tmp_path / "s", {"a": torch.tensor([value])}, {})
    assert load_state(tmp_path / "s")[0]["a"].tolist() == [2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_bag_of_examples_is_a_function_of_the_step():
    batch = sinusoids().pretraining_batch(0, 100)
    assert isinstance(batch, Batch)
    assert batch.inputs.shape == (100, 1)
    assert not torch.equal(batch.inputs, sinusoids().pretraining_batch(1, 100).inputs)


@pytest.mark.parametrize("output", ["linear", "cosine"])
def test_pretraining_in_bfloat16_keeps_float32_weights_and_scores_classes_in_float32(output):
    model = kshot.models.conv4(1, None, channels=4, size=28)
    source = kshot.sources.glyphs(ways=3, queries=2)
    loop = pretraining_loop(model, source, Settings(0.01, size=16), output=output, precision="bfloat16")
    seen = []
    loop.module.output.register_forward_hook(lambda module, args, scores: seen.append((args[0].dtype, scores.dtype)))
    convolved = []
    model.body[0].register_forward_hook(lambda module, args, maps: convolved.append(maps.dtype))
    exact = pretraining_loop(
        kshot.models.conv4(1, None, channels=4, size=28), source, Settings(0.01, size=16), output=output
    )
    exact.module.load_state_dict(loop.module.state_dict())
    rough, fine = loop.run(3), exact.run(3)
    assert set(seen) == {(torch.float32, torch.float32)}
    assert set(convolved) == {torch.bfloat16}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert rough == pytest.approx(fine, rel=0.05)
    assert rough != fine


def test_the_cosine_output_scores_by_the_angle_alone():
    model = nn.Linear(3, 5)
    classifier = Classifier(model, 4, torch.randn(2, 3), output="cosine", seed=1)
    x = torch.randn(6, 3)
    expected = 20 * torch.nn.functional.cosine_similarity(model(x)[:, None], classifier.output.weight, dim=2)
    torch.testing.assert_close(classifier(x), expected)
    again = Classifier(model, 4, torch.randn(2, 3), output="cosine", seed=1)
    assert torch.equal(again.output.weight, classifier.output.weight)


@pytest.mark.parametrize("options", [{"output": "softmax"}, {"precision": "float8"}])
def test_pretraining_options_that_do_not_exist_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"{name} must be one of \w+(, \w+)+, got '{value}'"):
        kshot.pretrain(kshot.models.mlp(1, 1), sinusoids(), steps=1, **options)


class Dropping(nn.Module):
    """A model with dropout and a part that stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.Dropout(0.5), nn.Linear(32, 1))

    def forward(self, x):
        return self.body(x)


def dropping_learner():
    return kshot.maml(Dropping(), inner_lr=0.01, objective=kshot.objectives.mse)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_after_training_no_dropout_disturbs_a_prediction(mode):
    learner, source = dropping_learner(), kshot.sources.sinusoids()
    modes = []
    kshot.fit(learner, source, steps=2, mode=mode, observe=lambda _: modes.append(learner.training))
    assert modes == [True, True]
    assert not any(part.training for part in learner.modules())
    task = source.task("val", 0)
    first, again = (learner.predict(learner.adapt(task.support), task.query.inputs) for _ in range(2))
    assert torch.equal(first, again)


def test_after_pretraining_and_after_an_error_too():
    learner, source = dropping_learner(), kshot.sources.sinusoids()
    kshot.pretrain(learner.model, source, steps=1)
    assert not any(part.training for part in learner.model.modules())
    with torch.no_grad():
        learner.model.body[0].weight.fill_(1e30)
    with pytest.raises(Diverged):
        kshot.fit(learner, source, steps=1)
    assert not any(part.training for part in learner.modules())


def test_training_in_parts_equals_training_at_once():
    source, settings, losses = kshot.sources.sinusoids(), Settings(horizon=4), []
    for parts in ((4,), (1, 3)):
        torch.manual_seed(0)
        learner = dropping_learner()
        loop = meta_training_loop(learner, source, settings)
        losses.append([])
        for steps in parts:
            losses[-1] += loop.run(steps)
            kshot.evaluate(learner, source, num_tasks=1, audit=False)
    assert losses[0] == losses[1]
