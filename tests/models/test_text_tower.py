"""Names of classes by the text tower of CLIP and SigLIP, with random weights, against transformers."""

import numpy as np
import pytest
import torch
from image_text_encoders import WORDS, make_folder

import kshot
from kshot.data.dataset import ArrayDataset
from kshot.data.images.encoder import ImageEncoder
from kshot.data.text.text_tower import text_features
from kshot.tasks import ClassTasks, with_names

transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'text'")

TEXTS = ["a photo of a cat", "dog", "a bird"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_of_names_are_those_of_transformers_and_in_the_space_of_images(kind, tmp_path):
    folder = make_folder(tmp_path, kind)
    found = text_features(folder, TEXTS)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = [[0, *(WORDS.index(word) for word in text.split()), 1] for text in TEXTS]
    length = 8 if kind == "siglip" else max(map(len, ids))
    padded = torch.tensor([row + [1] * (length - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    with torch.no_grad():
        output = model.get_text_features(input_ids=padded, attention_mask=mask)
    expected = output if torch.is_tensor(output) else output.pooler_output
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    assert ImageEncoder(folder).encode(images).shape[1] == found.shape[1]


def test_zero_shot_classification_of_images_from_names_alone(tmp_path):
    folder = make_folder(tmp_path, "clip")
    images = np.random.default_rng(1).integers(0, 256, (40, 3, 32, 32)).astype(np.uint8)
    features, names = ImageEncoder(folder).encode(images), ["cat", "dog", "bird", "fish"]
    classes = {name: range(10 * number, 10 * number + 10) for number, name in enumerate(names)}
    pools = {"train": {name: classes[name] for name in names[:2]}, "test": {name: classes[name] for name in names[2:]}}
    tasks = ClassTasks(ArrayDataset(features), pools, ways=2, shots=1, queries=4)
    of_names = dict(zip(names, text_features(folder, [f"a photo of a {name}" for name in names])))
    learner = kshot.learners.tip_adapter(features=features.shape[1] + 1, scale=100.0)
    task = with_names(tasks, of_names, examples=False).task("test", 0)
    (chosen,) = tasks.classes_of("test", [0])
    unit = torch.nn.functional.normalize
    towers = torch.from_numpy(np.stack([of_names[name] for name in chosen]))
    expected = 100 * unit(task.query.inputs[:, :-1], dim=1) @ unit(towers, dim=1).T
    torch.testing.assert_close(learner.predict(learner.adapt(task.support), task.query.inputs), expected)


def test_an_encoder_without_a_text_tower_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(
        ValueError, match="of the kind 'vit', which has no text tower that kshot knows: take one of clip"
    ):
        text_features(tmp_path, ["cat"])
    with pytest.raises(ValueError, match="there is no text to encode"):
        text_features(tmp_path, [])
