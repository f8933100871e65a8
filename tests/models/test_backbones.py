"""ResNet-12 and DropBlock, against their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

import kshot
from kshot import Batch, Task
from kshot.app.build import build_model
from kshot.app.spec import load_spec
from kshot.models import DropBlock, conv4, resnet12
from kshot.models.backbones import ResidualBlock
from kshot.training.fit import OuterLoop, Settings
from kshot.training.step import MetaGradient, meta_gradient
from kshot.types import stack


def expected_share(keep_prob, side, height, width):
    """The probability of a pixel being dropped, averaged over the map: one minus that of no seed in reach."""
    gamma = (1 - keep_prob) / side**2 * height * width / ((height - side + 1) * (width - side + 1))
    reach = lambda size: torch.tensor(  # noqa: E731  seeds that cover each place of a row
        [min(i, size - side) - max(i - side + 1, 0) + 1 for i in range(size)]
    )
    return float(1 - ((1 - gamma) ** torch.outer(reach(height), reach(width))).mean())


@pytest.mark.parametrize(("side", "height", "width"), [(1, 6, 6), (2, 6, 9), (3, 10, 10), (5, 5, 5)])
@pytest.mark.parametrize("keep_prob", [0.9, 0.6])
def test_the_share_that_is_dropped_is_that_of_the_definition(keep_prob, side, height, width):
    block = DropBlock(keep_prob, side)
    dropped = (block(torch.ones(400, 20, height, width)) == 0).float().flatten(2).mean(2)
    error = dropped.std() / dropped.numel() ** 0.5
    assert abs(dropped.mean() - expected_share(keep_prob, side, height, width)) < 4 * error
    assert dropped.mean() < 1 - keep_prob + 4 * error  # the paper's approximation is a bound: squares overlap


@pytest.mark.parametrize("side", [2, 3, 4])
def test_what_is_dropped_are_squares_that_fit(side):
    out = DropBlock(0.97, side)(torch.ones(50, 4, 12, 9))
    dropped = (out == 0).float()
    whole = -F.max_pool2d(-dropped, side, 1)  # places at which a whole square is dropped
    covered = F.max_pool2d(F.pad(whole, [side - 1] * 4), side, 1)
    torch.testing.assert_close(covered, dropped)
    alone = dropped.flatten(2).sum(2) == side**2
    assert alone.any()
    assert not (dropped[0] == dropped[1]).all()


def test_what_is_left_is_scaled_to_the_same_mean():
    x = torch.ones(5, 16, 8, 8)
    out = DropBlock(0.7, 3)(x)
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.ones(5))
    for example in out:
        assert len(example.unique()) == 2
    torch.testing.assert_close(DropBlock(1e-9, 8)(x), torch.zeros_like(x))  # all is dropped: zeros, not NaN


def test_the_derivative_is_the_scale_where_kept_and_nothing_else():
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    block = DropBlock(0.8, 2).double()
    draw = lambda x: (torch.manual_seed(3), block(x))[1]  # noqa: E731
    assert torch.autograd.gradcheck(draw, x)
    (slope,) = torch.autograd.grad(draw(x).sum(), x)
    torch.testing.assert_close(slope * x, draw(x))


def test_it_is_off_in_evaluation_mode_and_where_all_is_kept():
    x = torch.randn(2, 3, 6, 6)
    assert DropBlock(0.5, 2).eval()(x) is x
    assert DropBlock(1.0, 2)(x) is x


def test_a_map_smaller_than_the_square_is_dropped_whole():
    out = DropBlock(0.5, 5)(torch.ones(200, 10, 3, 2)).flatten(2)
    assert ((out == 0).all(2) | (out != 0).all(2)).all()
    assert abs((out == 0).float().mean() - 0.5) < 0.05


def test_the_share_grows_as_the_trainer_tells():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(DropBlock(0.8, 2, until=0.5), nn.Flatten(), nn.Linear(1, 1))

    model = Blocks()
    learner, block = kshot.maml(model, inner_lr=0.1), model.inner[0]
    assert float(block.drop_prob) == pytest.approx(0.2)
    for progress, share in ((0.0, 0.0), (0.1, 0.04), (0.25, 0.1), (0.5, 0.2), (1.0, 0.2)):
        learner.set_progress(progress)
        assert float(block.drop_prob) == pytest.approx(share)
    learner.set_progress(0.0)
    torch.testing.assert_close(block(torch.ones(2, 3, 4, 4)), torch.ones(2, 3, 4, 4))
    assert not block.state_dict()  # a function of the step, not of the weights


def test_the_trainer_tells_any_module_that_it_trains():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), DropBlock(0.7, 2, until=1.0))
    backward = lambda model, batch: (loss := model(batch).mean()).backward() or loss.detach()  # noqa: E731
    loop = OuterLoop(model, lambda step, size: torch.ones(size, 1, 6, 6), backward, Settings(horizon=10, size=2))
    shares = []
    for _ in range(3):
        loop.run(1)
        shares.append(float(model[1].drop_prob))
    assert shares == pytest.approx([0.0, 0.03, 0.06])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_prob": 0.0}, "keep_prob must be above 0 and at most 1, got 0.0"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"until": 2.0}, "until must be at least 0 and at most 1, got 2.0"),
    ],
)
def test_numbers_out_of_bounds_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DropBlock(**options)


def test_resnet12_has_the_published_number_of_parameters():
    layers = [3, 64, 160, 320, 640]
    count = sum(9 * a * b + 2 * 9 * b * b + a * b + 4 * 2 * b for a, b in zip(layers, layers[1:]))
    model = resnet12(3)
    assert sum(p.numel() for p in model.parameters()) == count == 12_424_320  # 12.4 million, as papers state
    assert sum(isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) for part in model.modules()) == 12


def test_a_residual_block_is_what_its_equation_says():
    block = ResidualBlock(2, 3, nn.Identity()).eval()
    x = torch.randn(4, 2, 9, 9)
    main = x
    for number in (0, 3, 6):
        main = block.main[number + 1](F.conv2d(main, block.main[number].weight, padding=1))
        main = torch.where(main > 0, main, 0.1 * main) if number < 6 else main
    both = main + block.shortcut[1](F.conv2d(x, block.shortcut[0].weight))
    torch.testing.assert_close(block(x), F.max_pool2d(torch.where(both > 0, both, 0.1 * both), 2))


@pytest.mark.parametrize(("side", "channels"), [(84, 3), (32, 3), (28, 1), (16, 1)])
def test_resnet12_takes_images_of_any_size_from_16_on(side, channels):
    model = resnet12(channels, 5, widths=(2, 3, 4, 6))
    assert model(torch.zeros(2, channels, side, side + 3)).shape == (2, 5)
    assert model.body(torch.zeros(2, channels, side, side)).shape == (2, 6)


def test_resnet12_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match=r"widths must be 4 values, got \(64, 64\)"):
        resnet12(3, widths=(64, 64))
    with pytest.raises(ValueError, match="ResNet-12 takes images of at least 16×16"):
        resnet12(1, widths=(2, 2, 2, 2))(torch.zeros(1, 1, 15, 40))


def images(count=2, side=16):
    def batch(each):
        return Batch.of(torch.randn(2 * each, 1, side, side), torch.arange(2).repeat(each), ways=2)

    return stack([Task(batch(4), batch(3)) for _ in range(count)])


def test_tasks_in_one_batch_drop_other_squares_each():
    learner = kshot.maml(resnet12(1, 2, widths=(4, 4, 4, 4), keep_prob=0.5, block_size=2), inner_lr=0.1)
    task = images(1)
    twice = stack([Task(*(Batch(*(leaf[0] for leaf in batch)) for batch in task))] * 2)
    adapt = torch.vmap(lambda task: learner.adapt(task.support)["params"]["head.weight"], randomness="different")
    first, second = adapt(twice)
    assert not torch.allclose(first, second)
    learner.eval()
    torch.testing.assert_close(*adapt(twice))


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_maml_trains_it_with_dropblock_on(mode):
    learner = kshot.maml(resnet12(1, 2, widths=(4, 4, 4, 4)), inner_lr=0.1)
    meta_gradient(learner, images(), mode)
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in learner.parameters())


def test_a_compiled_step_follows_the_schedule():
    model = nn.Sequential(DropBlock(0.5, 2), nn.Flatten(), nn.Linear(256, 2))
    learner, tasks = kshot.maml(model, inner_lr=0.01), images()
    gradient = MetaGradient(learner, "compiled", backend="eager")
    learner.set_progress(1.0)
    assert gradient(tasks) != gradient(tasks)
    learner.set_progress(0.0)
    torch.testing.assert_close(gradient(tasks), meta_gradient(learner, tasks, "loop"))
    assert not gradient.choice


def test_a_run_file_builds_it():
    recipe = load_spec("glyphs", ["model={kind: resnet12, widths: [2, 3, 4, 6], keep_prob: 0.8, block_size: 2}"])
    shapes = {"inputs": [1, 28, 28], "targets": [5]}
    model = build_model(recipe, shapes, head=True)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 5)
    assert build_model(recipe, shapes, head=False)(torch.zeros(2, 1, 28, 28)).shape == (2, 6)
    assert [(d.keep_prob, d.block_size) for d in model.modules() if isinstance(d, DropBlock)] == [(0.8, 2)] * 2
    with pytest.raises(ValueError, match="model resnet12 takes images"):
        build_model(recipe, {"inputs": [7], "targets": [5]}, head=True)
    with pytest.raises(ValueError, match=r"model.widths: list should have at least 4 items"):
        load_spec("glyphs", ["model={kind: resnet12, widths: [64]}"])


def test_conv4_may_pool_first_widen_and_scale_its_features():
    model = kshot.models.conv4(1, None, channels=[2, 3, 4, 5], downsample="pool_first", length=3.0)
    x = torch.rand(6, 1, 28, 28)
    features = model(x)
    assert features.shape == (6, 5)
    torch.testing.assert_close(features.norm(dim=1), torch.full((6,), 3.0))
    kinds = [type(part).__name__ for part in model.body]
    assert kinds == [*["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"] * 4, "Flatten", "FixedLength"]
    plain = kshot.models.conv4(1, None, channels=[2, 3, 4, 5], downsample="pool")
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values())))
    both = [network.eval()(x) for network in (model, plain)]
    directions = F.normalize(both[1], dim=1)
    torch.testing.assert_close(both[0], 3 * directions)  # with a rising norm, pooling commutes


def test_lengths_and_channels_of_conv4_are_checked():
    with pytest.raises(ValueError, match="length must be above 0, got 0"):
        kshot.models.conv4(1, length=0)
    with pytest.raises(ValueError, match=r"channels must be 4 values, got \[8, 8\]"):
        kshot.models.conv4(1, channels=[8, 8])
    with pytest.raises(ValueError, match="downsample must be one of pool, pool_first, stride"):
        kshot.models.conv4(1, downsample="pooling")


def test_mirrored_features_are_a_mean_over_both_images_in_evaluation_alone():
    plain = kshot.models.conv4(3, 5, channels=4, size=32)
    mirrored = kshot.models.conv4(3, 5, channels=4, size=32, length=2.0, views=2)
    mirrored.load_state_dict(dict(zip(mirrored.state_dict(), plain.state_dict().values())))
    x = torch.rand(3, 3, 32, 32)
    for model in (plain, mirrored):
        model.train()(x)  # statistics of BatchNorm
    mean = (plain.eval().body(x) + plain.body(torch.from_numpy(x.numpy()[..., ::-1].copy()))) / 2
    torch.testing.assert_close(mirrored.eval().body(x), 2 * F.normalize(mean, dim=1))
    torch.testing.assert_close(mirrored.train().body(x), 2 * F.normalize(plain.train().body(x), dim=1))


def test_viewed_features_are_a_mean_over_warped_images_in_evaluation_alone():
    plain = kshot.models.conv4(1, None, channels=4)
    viewed = kshot.models.conv4(1, None, channels=4, views=5)
    viewed.load_state_dict(plain.state_dict())
    x = torch.rand(3, 1, 28, 28)
    a, middle = np.deg2rad(8), np.array([13.5, 13.5])
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    copies = [x]
    for matrix in (turn, turn.T, np.diag([1, 1.1]), np.diag([1, 0.9])):  # scipy counts rows first
        warped = [
            ndimage.affine_transform(image[0].numpy(), matrix, middle - matrix @ middle, order=1, mode="nearest")
            for image in x
        ]
        copies.append(torch.from_numpy(np.stack(warped))[:, None])
    plain.eval(), viewed.eval()
    torch.testing.assert_close(viewed(x), torch.stack([plain(copy) for copy in copies]).mean(0), rtol=1e-3, atol=1e-4)
    plain.train(), viewed.train()
    assert torch.equal(viewed(x), plain(x))
    with pytest.raises(ValueError, match="views must be one of 1, 2, 5, got 3"):
        kshot.models.conv4(1, views=3)


@pytest.mark.parametrize("batchnorm", ["support", "running"])
def test_a_learner_of_views_is_inductive(batchnorm):
    learner = kshot.protonet(kshot.models.conv4(1, None, channels=4, length=1.0, views=5), batchnorm=batchnorm).eval()
    task = kshot.sources.glyphs(ways=3, queries=2).task("test", 0)
    with torch.no_grad():
        state = learner.adapt(task.support)
        together = learner.predict(state, task.query.inputs)
        alone = torch.cat([learner.predict(state, one[None]) for one in task.query.inputs])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **o: conv4(1, channels=3, size=32, **o), (3, 2, 2)),
        (lambda **o: resnet12(1, widths=(2, 2, 2, 6), **o), (6, 2, 2)),
    ],
)
def test_maps_are_what_is_pooled_or_flattened_else(make, shape):
    torch.manual_seed(0)
    flat = make().eval()
    torch.manual_seed(0)
    maps = make(maps=True).eval()
    images = torch.randn(2, 1, 32, 32)
    assert maps(images).shape == (2, *shape)
    expected = maps(images).flatten(1) if shape[0] == 3 else maps(images).mean((2, 3))
    torch.testing.assert_close(flat(images), expected)
    with pytest.raises(ValueError, match="feature maps have no head"):
        make(outputs=5, maps=True)
