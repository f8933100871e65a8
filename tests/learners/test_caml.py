"""CAML: label vectors, what an untrained learner predicts, and that it learns what class means cannot."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features import features, support_of
from torch import nn

import kshot
from kshot import Batch, Task
from kshot.learners.amortised.caml import equiangular


@pytest.mark.parametrize("count", [2, 5, 9])
def test_label_vectors_have_one_length_and_one_angle(count):
    vectors = equiangular(count).double().numpy()
    expected = np.full((count, count), -1 / (count - 1)) + np.eye(count) * count / (count - 1)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-6)


def test_untrained_it_predicts_as_class_means():
    feat, target, _ = features(9, 6, 3)
    support = support_of(feat[:6], target[:6])
    learner = kshot.learners.caml(nn.Flatten(), features=6, scale=7.0).double()
    means = torch.stack([feat[:6][target[:6, c] > 0].mean(0) for c in range(3)])
    scale = learner.head.prototypes.distance.log_scale.detach().exp()  # 7 but for the rounding of its logarithm
    expected = scale * F.cosine_similarity(feat[6:, None], means, dim=2)
    torch.testing.assert_close(learner.predict(learner.adapt(support), feat[6:]), expected, rtol=1e-12, atol=1e-12)


def test_the_correction_is_that_of_a_transformer_over_the_support_rows():
    feat, target, _ = features(9, 6, 3)
    support, query = support_of(feat[:6], target[:6]), feat[6:]
    torch.manual_seed(0)
    learner = kshot.learners.caml(nn.Flatten(), features=6, classes=4, width=8, heads=2, layers=2).double()
    head = learner.head
    nn.init.normal_(head.out.weight)
    nn.init.normal_(head.unknown)
    found = learner.predict(learner.adapt(support), query)
    with torch.no_grad():
        plain = head.prototypes.predict(head.prototypes.fit(feat[:6], target[:6], support.weight), query)

        def row(rows):
            return head.image(6**0.5 * F.normalize(rows - feat[:6].mean(0), dim=1))

        phi = head.labels
        rows = torch.cat([row(feat[:6]) + head.label(phi[target[:6].argmax(1)]), row(query) + head.unknown])
        for block in head.blocks:
            attention, normed = block.attention, block.before(rows)
            q, k, v = (
                part(normed).unflatten(1, (2, 4)).transpose(0, 1)
                for part in (attention.query, attention.key, attention.value)
            )
            read = F.scaled_dot_product_attention(q, k[:, :6], v[:, :6]).transpose(0, 1).flatten(1)
            rows = rows + attention.out(read)
            rows = rows + block.mixed(block.between(rows))
        expected = plain + head.out(head.norm(rows[6:])) @ phi[:3].T
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Hidden(kshot.TaskSource):
    """Classes differ in the sign of one feature, small beside the noise of the others, in every task the same one."""

    objective, seed = kshot.objectives.classification, 0

    def task(self, split, index):
        random = torch.Generator().manual_seed(index + 10**6 * (split != "train"))
        order = torch.randperm(2, generator=random)

        def batch(count):
            labels = torch.arange(count) % 2
            rows = torch.randn(count, 4, generator=random) * torch.tensor([1.0, 2.0, 2.0, 2.0])
            rows[:, 0] = rows[:, 0].abs() * (2.0 * order[labels] - 1)
            return Batch(rows, F.one_hot(labels, 2).float(), torch.ones(count))

        return Task(batch(4), batch(20))


def test_trained_on_tasks_it_is_better_than_class_means():
    torch.manual_seed(0)
    learner = kshot.learners.caml(nn.Flatten(), features=4, classes=2, width=16, layers=2)
    before = kshot.evaluate(learner, Hidden(), num_tasks=40, audit=False).metrics["accuracy"].mean
    kshot.fit(learner, Hidden(), steps=150, tasks_per_step=8, outer_lr=3e-3, mode="vmap")
    after = kshot.evaluate(learner, Hidden(), num_tasks=40, audit=False).metrics["accuracy"].mean
    assert after > before + 0.1


def test_tasks_of_more_classes_than_there_are_label_vectors_are_refused():
    learner = kshot.learners.caml(nn.Flatten(), features=2, classes=2)
    with pytest.raises(ValueError, match="at most 2 classes, got 3"):
        learner.adapt(Batch.of(torch.randn(3, 2), torch.arange(3), ways=3))
    with pytest.raises(ValueError, match="width must be a multiple of heads"):
        kshot.learners.caml(nn.Flatten(), features=2, width=10, heads=4)
