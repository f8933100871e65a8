"""Characters drawn from the fonts that matplotlib ships."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch

from kshot.app.known_sets import open_known
from kshot.data import library
from kshot.sources import glyphs
from kshot.sources.glyphs import (
    ALIKE,
    DRAWINGS,
    FACES,
    FEWEST_FACES,
    SCRIPTS,
    _candidates,
    _canonical,
    _drawing,
    _faces_of,
)
from kshot.tasks import ClassTasks
from kshot.types import SPLITS


@pytest.fixture(scope="module")
def source() -> ClassTasks:
    return glyphs()


def drawings(source: ClassTasks, split) -> np.ndarray:
    """All drawings of a split: (classes, 20, 28, 28), bytes."""
    return np.stack([source.examples.images[rows, 0] for rows in source.classes(split).values()])


def test_there_are_enough_classes_to_train_and_to_test_on(source):
    counts = source.describe()["classes"]
    assert counts["train"] >= 500
    assert counts["val"] >= 80
    assert counts["test"] >= 100
    assert all(len(rows) == DRAWINGS for split in SPLITS for rows in source.classes(split).values())


def test_whole_scripts_are_held_out(source):
    seen: set[str] = set()
    for split in SPLITS:
        names = source.class_names[split]
        assert all(name.startswith(tuple(f"{script} " for script in SCRIPTS[split])) for name in names)
        assert not seen & set(names)
        seen |= set(names)
    first_words = [{name.split()[0] for name in source.class_names[split]} for split in SPLITS]
    assert sum(map(len, first_words)) == len(set.union(*first_words))


def test_no_two_classes_of_the_pool_look_alike(source):
    canonical = [_canonical(unicodedata.lookup(name)) for split in SPLITS for name in source.class_names[split]]
    unit = np.stack(canonical) / np.linalg.norm(canonical, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, 0)
    assert similarity.max() < ALIKE


@pytest.mark.parametrize("alike", ["cC", "AΑА", "oO0ОοՕ", "HΗН", "ІIl", "sSѕ"])
def test_known_look_alikes_leave_at_most_one(source, alike):
    kept = {name for split in SPLITS for name in source.class_names[split]}
    assert sum(unicodedata.name(character) in kept for character in alike) <= 1


def test_characters_are_plain_and_stand_in_several_faces(source):
    for split in SPLITS:
        for name in source.class_names[split]:
            character = unicodedata.lookup(name)
            assert not unicodedata.decomposition(character)
            assert len(_faces_of(character)) >= FEWEST_FACES
    assert len(_candidates()) > 2 * sum(source.describe()["classes"].values()) * 0.9, "look-alikes were dropped"
    assert len(FACES) == 12


@pytest.mark.parametrize("split", SPLITS)
def test_every_drawing_is_readable_centred_and_whole(source, split):
    images = drawings(source, split).reshape(-1, 28, 28)
    assert images.max((1, 2)).min() > 150, "strokes are bright"
    share = (images > 100).mean((1, 2))
    assert share.min() > 0.02
    assert share.max() < 0.65
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert border.max() == 0, "nothing is cut off"
    for axis in (1, 2):
        ink = images.max(axis) > 60
        first, last = ink.argmax(1), 27 - ink[:, ::-1].argmax(1)
        assert np.abs((first + last) / 2 - 13.5).max() <= 1
    assert np.max([np.ptp(np.flatnonzero(image.max(0) > 60)) for image in images]) >= 20


def test_the_drawings_of_a_class_differ(source):
    for split in SPLITS:
        for own in drawings(source, split):
            assert len({image.tobytes() for image in own}) == DRAWINGS


def test_drawing_again_gives_the_same_bytes(source):
    classes = list(source.classes("test").items())
    for name, rows in classes[::40]:
        for number in (0, 7, 19):
            drawn = _drawing(unicodedata.lookup(name), number)
            assert np.array_equal(drawn, source.examples.images[rows[number], 0])


def test_the_drawings_are_read_from_the_cache_and_made_again_when_it_is_damaged(source, cache, monkeypatch):
    (path,) = cache.glob("glyphs-*.npz")
    made = source.examples.images
    kept = path.read_bytes()

    def draw() -> dict[str, np.ndarray]:
        redrawn.append(1)
        return {"images": made, "characters": characters}

    redrawn: list[int] = []
    with np.load(path) as arrays:
        characters = arrays["characters"]
    monkeypatch.setitem(glyphs.__globals__, "_draw_all", draw)
    assert np.array_equal(glyphs(seed=3).examples.images, source.examples.images)
    assert not redrawn, "a whole cache is used"
    flipped = bytearray(kept)
    flipped[len(kept) // 2] ^= 1
    for times, damage in enumerate((kept[: len(kept) // 2], bytes(flipped), b"", b"no zip"), 1):
        path.write_bytes(damage)
        assert np.array_equal(glyphs().examples.images, source.examples.images)
        assert len(redrawn) == times
        assert np.array_equal(glyphs().examples.images, source.examples.images)
        assert len(redrawn) == times, "and the new cache is whole"
    assert [p.name for p in cache.iterdir() if p.name.startswith(".") and p.suffix != ".lock"] == []


def test_pixels_alone_tell_some_of_unseen_scripts_but_far_from_all(source):
    tasks = source.stack("test", range(100))
    distance = torch.cdist(tasks.query.inputs.flatten(2), tasks.support.inputs.flatten(2))
    guess = torch.take_along_dim(tasks.support.targets, distance.argmin(-1, keepdim=True), 1)
    accuracy = (guess * tasks.query.targets).sum(-1).mean()
    assert 0.4 < accuracy < 0.75


def test_more_drawings_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"has 20 examples, but 10 shots \+ 15 queries need 25"):
        glyphs(shots=10)


def test_the_library_counts_the_glyphs(source):
    counts = library.check("glyphs", open_known)
    assert {split: count["classes"] for split, count in counts.items()} == source.describe()["classes"]
    assert all(count["drawings"] == DRAWINGS * count["classes"] for count in counts.values())
