import pytest
import torch
from torch import nn

from kshot import Batch, objectives


def test_objectives_equal_torch():
    logits, labels, weight = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6)
    batch = Batch.of(torch.zeros(6, 1), labels, ways=3, weight=weight)
    expected = (nn.functional.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    torch.testing.assert_close(objectives.classification.loss(logits, batch), expected)
    hit = (logits.argmax(1) == labels).float()
    torch.testing.assert_close(
        objectives.classification.metrics(logits, batch)["accuracy"], (hit * weight).sum() / weight.sum()
    )
    even = Batch.of(torch.zeros(6, 1), torch.randn(6, 2))
    torch.testing.assert_close(
        objectives.mse.loss(logits[:, :2], even), nn.functional.mse_loss(logits[:, :2], even.targets)
    )


@pytest.mark.parametrize("objective", [objectives.mse, objectives.classification])
def test_a_prediction_of_another_shape_is_refused(objective):
    batch = Batch.of(torch.zeros(4, 1), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"predicts \(4, 1\) but the targets are \(4, 2\)"):
        objective.loss(torch.zeros(4, 1), batch)


def windows(count: int = 5, length: int = 7, symbols: int = 4) -> tuple[torch.Tensor, Batch]:
    logits = torch.randn(count, length, symbols, dtype=torch.float64)
    targets = torch.randint(symbols, (count, length))
    targets[1, 3:] = -100
    return logits, Batch.of(torch.zeros(count, length), targets, weight=torch.rand(count, dtype=torch.float64))


def test_next_token_equals_torch():
    logits, batch = windows()
    each = nn.functional.cross_entropy(logits.mT, batch.targets, reduction="none")  # 0 where the target is ignored
    counted = (batch.targets >= 0) * batch.weight[:, None]
    expected = (each * batch.weight[:, None]).sum() / counted.sum()
    torch.testing.assert_close(objectives.next_token.loss(logits, batch), expected)
    bits = objectives.next_token.metrics(logits, batch)["bits_per_character"]
    torch.testing.assert_close(bits, expected / torch.log(torch.tensor(2.0, dtype=torch.float64)))


def test_bits_per_character_in_closed_form():
    _, batch = windows(symbols=8)
    bits = lambda logits: float(objectives.next_token.metrics(logits, batch)["bits_per_character"])  # noqa: E731
    assert bits(torch.zeros(5, 7, 8)) == pytest.approx(3)  # eight symbols, all equally likely
    sure = 1e3 * nn.functional.one_hot(batch.targets.clamp(min=0), 8).double()
    assert bits(sure) == 0
    # symbol 0 with p, the others alike: H = -f log p - (1 - f) log((1 - p) / 7), at its least where p = f
    counted = (batch.targets >= 0) * batch.weight[:, None]
    f = float((counted * (batch.targets == 0)).sum() / counted.sum())
    p = torch.tensor([f] + [(1 - f) / 7] * 7, dtype=torch.float64)
    entropy = -f * p[0].log2() - (1 - f) * p[1].log2()
    assert bits(p.log().expand(5, 7, 8)) == pytest.approx(float(entropy))


def test_padding_neither_counts_nor_pulls():
    logits, batch = windows()
    logits.requires_grad_()
    objectives.next_token.loss(logits, batch).backward()
    assert logits.grad[1, 3:].abs().max() == 0 < logits.grad[1, :3].abs().min()
    kept = batch._replace(weight=torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(
        objectives.next_token.loss(logits, kept), objectives.next_token.loss(logits[:2], kept.rows(slice(2)))
    )


def test_next_token_under_vmap_and_twice_differentiated():
    logits, batch = windows()
    loss = objectives.next_token.loss
    stacked = Batch(*(torch.stack([leaf, leaf.flip(0)]) for leaf in batch))
    twice = torch.func.vmap(loss)(torch.stack([logits, logits.flip(0)]), stacked)
    torch.testing.assert_close(twice, loss(logits, batch).expand(2))
    small = Batch(*(leaf[:2] for leaf in batch))
    start = logits[:2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda values: loss(values, small), start)


@pytest.mark.parametrize(
    ("shape", "targets"),
    [((2, 3, 4), torch.zeros(2, 4).long()), ((2, 3), torch.zeros(2, 3).long()), ((2, 3, 4), torch.zeros(2, 3))],
)
def test_next_token_names_the_shapes_it_needs(shape, targets):
    with pytest.raises(ValueError, match=r"need (logits \(n, length, symbols\)|integer targets \(n, length\))"):
        objectives.next_token.loss(torch.zeros(shape), Batch.of(torch.zeros(2, 1), targets))


@pytest.mark.parametrize(
    ("objective", "right", "wrong", "message"),
    [
        (objectives.classification, torch.zeros(4, 3), torch.zeros(4), r"one-hot \(n, ways\), got float32 \(4,\)"),
        (objectives.mse, torch.zeros(4, 1), torch.zeros(4), r"one number per example is \(n, 1\)"),
        (
            objectives.forecast(2),
            torch.zeros(4, 6),
            torch.zeros(4, 6).long(),
            "floating-point numbers .* got torch.int64",
        ),
        (objectives.gaussian, torch.zeros(4, 2, 2), torch.zeros(4), r"at least two axes, got torch.float32 \(4,\)"),
        (objectives.next_token, torch.zeros(4, 9).long(), torch.zeros(4, 9), "integer targets"),
    ],
)
def test_targets_are_checked_by_shape_and_dtype(objective, right, wrong, message):
    objective.check_targets(right)
    torch.func.vmap(lambda targets: (objective.check_targets(targets), targets)[1])(right[None])
    with pytest.raises(ValueError, match=message):
        objective.check_targets(wrong)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (objectives.gaussian, "gaussian"),
        (objectives.forecast(24), 'forecast {"season": 24, "unit": 1.0}'),
        (objectives.in_units([2.0], ["price"]), 'in_units {"scales": [2.0], "names": ["price"]}'),
        (
            objectives.levels([1, 2], 1.5, 0.5, like=2),
            'levels {"values": [1.0, 2.0], "mean": 1.5, "std": 0.5, "like": 2.0}',
        ),
    ],
)
def test_an_objective_is_found_again_by_its_name(objective, name):
    assert objectives.name_of(objective) == name
    assert objectives.from_name(name) == objective


def test_an_objective_that_was_changed_does_not_keep_its_name():
    with pytest.raises(ValueError, match="differs from the one named 'mse'"):
        objectives.name_of(objectives.mse._replace(metrics=lambda prediction, batch: {}))


def test_objectives_of_other_packages(tmp_path, monkeypatch):
    (tmp_path / "my_objectives.py").write_text(
        "from kshot.objectives import Objective, mse\n"
        "plain = mse._replace(name='my_objectives:plain')\n"
        "def scaled(by: float) -> Objective:\n"
        "    return mse._replace(loss=lambda prediction, batch: by * mse.loss(prediction, batch))\n"
        "def unannotated(by):\n"
        "    raise AssertionError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = 'my_objectives:scaled {"by": 3.0}'
    with pytest.raises(ValueError, match="would import my_objectives"):
        objectives.from_name(name)
    scaled = objectives.from_name(name, allow_import=True)
    assert objectives.name_of(scaled) == name
    batch = Batch.of(torch.zeros(2, 1), torch.ones(2, 1))
    assert float(scaled.loss(torch.zeros(2, 1), batch)) == 3.0
    assert objectives.name_of(objectives.from_name("my_objectives:plain", allow_import=True)) == "my_objectives:plain"
    for name in ('my_objectives:unannotated {"by": 1}', 'os:system {"command": "false"}', "my_objectives:scaled"):
        with pytest.raises((ValueError, TypeError), match="annotated to return|missing 1 required"):
            objectives.from_name(name, allow_import=True)
    with pytest.raises(ValueError, match="there is no objective 'my_objectives:other'"):
        objectives.from_name("my_objectives:other", allow_import=True)
