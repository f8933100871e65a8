"""Images to complete from a few of their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console

from kshot.app.run import run
from kshot.app.spec import load_spec
from kshot.evaluation.report.task_pictures import Completion, completions
from kshot.sources import pixels
from kshot.tasks import ClassTasks


def pictures(size: int = 6, colours: int = 1) -> ClassTasks:
    """Classes of tiny pictures in which each pixel says which picture, and which pixel, it is."""
    images = np.arange(24 * colours * size * size, dtype=np.uint64) % 251
    images = images.astype(np.uint8).reshape(24, colours, size, size)
    split = lambda first: {f"class {c}": range(4 * c, 4 * c + 4) for c in (first, first + 1)}  # noqa: E731
    classes = {"train": split(0), "val": split(2), "test": split(4)}
    return ClassTasks(images, classes, ways=2, shots=1, queries=1)


@pytest.mark.parametrize("colours", [1, 3])
def test_each_pixel_is_of_one_image_at_its_own_place_and_asked_for_once(colours):
    source = pixels(pictures(colours=colours), shots=5, queries=12, train_queries=4)
    places = {tuple(place): number for number, place in enumerate(source.positions.tolist())}
    for index in range(5):
        task, image = source.task("test", index), source.image("test", index).flatten(1).T
        seen = []
        for batch in task:
            at = [places[tuple(place)] for place in batch.inputs.tolist()]
            assert torch.equal(batch.targets, image[at])
            seen += at
        assert len(set(seen)) == len(seen) == 17
    assert len(source.task("train", 0).query.weight) == 4


def test_splits_share_no_image_and_tasks_are_a_function_of_their_number():
    source = pixels(pictures(), shots=5, queries=5)
    images = {
        split: {source.image(split, i).numpy().tobytes() for i in range(60)} for split in ("train", "val", "test")
    }
    assert [len(own) for own in images.values()] == [8, 8, 8]
    assert not images["train"] & images["test"]
    again = pixels(pictures(), shots=5, queries=5).stack("val", [3, 9])
    for one, other in zip(source.task("val", 9).support, again.support):
        assert torch.equal(one, other[1])


def test_a_range_of_shots_ends_in_padding_and_waves_stand_beside_the_coordinates():
    source = pixels(pictures(), shots=[2, 9], queries=4, frequencies=2)
    counts = {int(source.task("train", index).support.weight.sum()) for index in range(60)}
    assert counts == set(range(2, 10))
    places = source.positions
    assert places.shape == (36, 10)
    assert places[:, :2].min() == -1
    assert places[:, :2].max() == 1
    torch.testing.assert_close(places[:, 6:8], torch.sin(2 * torch.pi * places[:, :2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "faces"}, "of must be one of glyphs, omniglot"),
        ({"shots": 30, "queries": 7}, "36 pixels"),
        ({"frequencies": -1}, "frequencies"),
        ({"shots": 0}, "shots"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pixels(**{"of": pictures(), "shots": 5, "queries": 5} | options)


def test_a_picture_shows_what_was_known_and_what_was_made_of_it():
    image = torch.rand(1, 4, 4)
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0, 0] = True
    column = [Completion(image, known, image, torch.full((1, 4, 4), 0.25))] * 2
    figure = completions([column, column, column])
    shown = figure.axes[0].images
    assert len(shown) == 3 * (1 + 3 * 2)
    drawn = np.asarray(shown[1].get_array())
    assert drawn.shape == (4, 4, 3)
    assert np.allclose(drawn[0, 0], float(image[0, 0, 0]))
    assert np.ptp(drawn[1:].reshape(-1, 3), 0).max() == 0  # one colour where nothing is known
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts >= {"image", "1 known\npixels", "completed", "uncertainty"}
    with pytest.raises(ValueError, match="same number of completions"):
        completions([column, column[:1]])


def test_a_run_reports_completed_images(tmp_path):
    changes = ["train.steps_per_round=1", "train.tasks_per_step=2", "budget.rounds=1", "learner.layers=1"]
    changes += ["learner.width=8", "source.shots=[5, 20]", "evaluate={num_val_tasks: 2, num_test_tasks: 8, shots: []}"]
    spec = load_spec("glyph-completion", [*changes, "baselines.num_test_tasks=2"])
    report = run(spec, tmp_path / "run", console=Console(quiet=True))
    assert report["trusted"], report["audits"]
    assert report["protocol"]["classes"]["test"] > 100
    assert "completions" in (tmp_path / "run" / "report.html").read_text()
