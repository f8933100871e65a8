# %% [markdown]
# # Adapting without PyTorch: ONNX, and a page in a browser
#
# **Shows** a trained run as two graphs of ONNX, `adapt` and `predict`, which onnxruntime runs in Python, in a service
# or on a device, and as one HTML page that learns in a browser.
#
# **Needs** `pip install 'kshot[onnx]'`; the page also needs onnxruntime-web, see the end. **Takes** about a minute on
# two cores; with `QUICK = True` some seconds, with worse figures.

# %%
import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch

import kshot
from kshot.integrations.onnx import export_run

QUICK = False

# %% [markdown]
# ## A run
#
# A prototypical network on characters that are drawn from fonts: five characters of a script, one drawing of each.
# The scripts of the test are not in the training.

# %%
run_file = {
    "name": "characters",
    "source": {"kind": "glyphs", "ways": 5, "shots": 1, "queries": 15},
    "model": {"kind": "mlp", "hidden": [128, 64]},
    "learner": {"kind": "protonet"},
    "train": {"steps_per_round": 50 if QUICK else 400, "tasks_per_step": 4, "outer_lr": 2e-3, "mode": "vmap"},
    "target": "accuracy >= 0.8",
    "budget": {"rounds": 1 if QUICK else 3},
    "evaluate": {"num_val_tasks": 10 if QUICK else 100, "num_test_tasks": 16 if QUICK else 200},
    "baselines": {"names": ["centroid"]},
}
report = kshot.run(run_file)
print(report)

# %% [markdown]
# ## The graphs
#
# `kshot export runs/characters --onnx graphs/` does the same as `export_run`. Each graph is compared with the learner
# on support sets of other sizes before it is written. A learner that takes gradient steps has no graph of `adapt`,
# since ONNX has no derivatives; then export each adapted state by `--state`.

# %%
graphs = report.folder / "graphs"
for sentence in export_run(report.folder, graphs):
    print(sentence)
adapt, predict = (onnxruntime.InferenceSession(graphs / f"{name}.onnx") for name in ("adapt", "predict"))

# %% [markdown]
# ## A new task, by onnxruntime
#
# From here on there is only NumPy. `adapt` takes a support set, of any number of rows and classes, and returns the
# state; `predict` takes the state and queries. Images have to be what the run was trained on, here 28 × 28 and 0 … 1:
# the metadata of the graphs say it.

# %%
task = kshot.sources.glyphs(ways=8, shots=2, queries=5).task("test", 3)  # eight classes: the run was trained on five
support = {name: np.asarray(getattr(task.support, name)) for name in ("inputs", "targets", "weight")}
queries = np.asarray(task.query.inputs)
names = [leaf.name for leaf in adapt.get_outputs()]
state = dict(zip(names, adapt.run(names, support)))
(logits,) = predict.run(None, state | {"inputs": queries})
labels, found = np.asarray(task.query.targets).argmax(1), logits.argmax(1)
print(f"{(found == labels).sum()} of {len(labels)} drawings of 8 new characters are named correctly")

# %% [markdown]
# The same by kshot: both differ by rounding only.

# %%
learner = report.trained.learner.eval()
with torch.no_grad():
    expected = learner.predict(learner.adapt(task.support), task.query.inputs).numpy()
largest_difference = np.abs(logits - expected).max()
print(f"largest difference of the logits: {largest_difference:.1e}")

# %% [markdown]
# Below, one of the two drawings of each character that `adapt` was given, and a query that was taken for it, red
# where that is wrong.

# %%
figure, axes = plt.subplots(2, 8, figsize=(9, 2.6))
for number, (above, below) in enumerate(axes.T):
    above.imshow(support["inputs"][support["targets"][:, number] == 1][0, 0], cmap="gray_r")
    taken = np.flatnonzero(found == number)
    if len(taken):
        below.imshow(queries[taken[0], 0], cmap="gray_r" if labels[taken[0]] == number else "Reds")
for axis in axes.flat:
    axis.axis("off")
plt.show()

# %% [markdown]
# ## The page
#
# The graphs run in a browser too. ONNX Runtime Web comes from npm, and kshot downloads nothing: fetch it once, then
# write the page. It is one file, opens from disk, refuses every connection, and learns what you draw or drop into it.
#
# ```sh
# npm pack onnxruntime-web@1.30.0 --pack-destination ~/.cache/kshot
# kshot export runs/characters --browser page.html
# ```

# %%
print(f"kshot export {report.folder} --browser page.html")
for file in sorted(graphs.iterdir()):
    print(f"{file}: {file.stat().st_size // 1024} kB")
