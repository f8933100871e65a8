"""The objective of masks, against scikit-learn and torch."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from torch import nn

import kshot
from kshot import Batch, objectives

objective = objectives.segmentation


def example(n=4, classes=3, size=6, *, seed=0, ignored=0.1):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, size, size, generator=random, dtype=torch.float64)
    chosen = torch.randint(0, classes, (n, size, size), generator=random)
    targets = nn.functional.one_hot(chosen, classes).movedim(-1, 1).double()
    chosen[torch.rand(n, size, size, generator=random) < ignored] = -100
    targets = targets * (chosen >= 0)[:, None]
    return logits, chosen, Batch.of(torch.zeros(n, 1), targets)


def test_the_loss_is_that_of_torch_with_ignored_pixels():
    logits, chosen, batch = example()
    torch.testing.assert_close(objective.loss(logits, batch), nn.functional.cross_entropy(logits, chosen))


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn(seed):
    logits, chosen, batch = example(seed=seed)
    scored = chosen >= 0
    true, predicted = chosen[scored].numpy(), logits.argmax(1)[scored].numpy()
    found = {name: float(value) for name, value in objective.metrics(logits, batch).items()}
    of_classes = jaccard_score(true, predicted, labels=[1, 2], average="macro")
    of_object = jaccard_score(true > 0, predicted > 0, pos_label=True)
    of_ground = jaccard_score(true > 0, predicted > 0, pos_label=False)
    assert found == pytest.approx(
        {
            "mean_iou": of_classes,
            "fb_iou": (of_object + of_ground) / 2,
            "pixel_accuracy": accuracy_score(true, predicted),
        }
    )


def test_rows_have_weights_and_classes_that_are_nowhere_do_not_count():
    logits, _, batch = example()
    batch = batch._replace(weight=batch.weight.double())
    twice = Batch.of(torch.zeros(4, 1), batch.targets, weight=torch.tensor([2.0, 1.0, 0.0, 0.0]))
    rows = Batch.of(torch.zeros(3, 1), batch.targets[[0, 0, 1]])
    for name, value in objective.metrics(logits, twice).items():
        assert float(value) == pytest.approx(float(objective.metrics(logits[[0, 0, 1]], rows)[name])), name
    empty = torch.zeros(1, 3, 2, 2)
    empty[:, 0] = 1
    certain = objective.metrics(objective.as_prediction(empty), Batch.of(torch.zeros(1, 1), empty))
    assert {name: float(value) for name, value in certain.items()} == dict.fromkeys(certain, 1.0)


def test_smaller_logits_are_scaled_bilinearly():
    logits, _, batch = example(size=8)
    small = logits[..., ::2, ::2]
    large = nn.functional.interpolate(small, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(objective.loss(small, batch), objective.loss(large, batch))
    assert objective.metrics(small, batch) == objective.metrics(large, batch)


def test_it_is_differentiated_twice_and_runs_under_vmap():
    logits, _, batch = example(n=2, size=3)
    start = logits[..., :2, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda values: objective.loss(values, batch), start)
    stacked = Batch(*(torch.stack([leaf, leaf.flip(0)]) for leaf in batch))
    twice = torch.vmap(objective.loss)(torch.stack([logits, logits.flip(0)]), stacked)
    torch.testing.assert_close(twice, objective.loss(logits, batch).expand(2))


def test_targets_and_predictions_of_another_form():
    _, _, batch = example()
    with pytest.raises(ValueError, match=r"targets must be masks \(n, classes, H, W\).* got float32 \(2, 3\)"):
        objective.check_targets(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"predicts \(4, 2, 6, 6\) but the targets are \(4, 3, 6, 6\)"):
        objective.loss(torch.zeros(4, 2, 6, 6), batch)
    wrong = batch.targets.clone()
    wrong[1, :, 2, 3] = torch.tensor([1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"image 1 has the classes \[1.0, 1.0, 0.0\] in the pixel \(2, 3\)"):
        objective.check_values(batch._replace(targets=wrong))
    objective.check_values(batch)


def test_learners_that_need_one_class_for_each_example_refuse_masks():
    with pytest.raises(ValueError, match="one class for each example, and segmentation has a class for each pixel"):
        kshot.learners.plda(nn.Identity(), features=4, objective=objective)


def test_it_is_named_in_files():
    assert objectives.from_name("segmentation") == objective


def test_training_a_small_network_beats_background_everywhere():
    task = kshot.testing.make_task(objective, inputs=(1, 16, 16), seed=3)
    model = kshot.models.segmenter(1, 2, channels=[8], halvings=1)
    tuned = kshot.learners.fine_tune(model, inner_lr=0.05, steps=40, rule="adam", objective=objective)
    found = tuned.predict(tuned.adapt(task.support), task.query.inputs).detach()
    assert float(objective.metrics(found, task.query)["mean_iou"]) > 0.6
    assert np.isfinite(float(objective.loss(found, task.query)))
