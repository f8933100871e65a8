# %% [markdown]
# # First contact
#
# **Shows** what meta-learning is: a network that fits a new curve from five points after three gradient steps,
# because it was trained to. First in plain Python, then by a run file, which also compares it with other methods.
#
# **Needs** `pip install kshot`. **Takes** a minute or two on two cores; with `QUICK = True` some seconds, with worse
# figures.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import kshot

QUICK = False

# %% [markdown]
# ## Tasks
#
# A *task* is one small problem. Here it is a sine wave with an amplitude and a phase of its own, of which five points
# are known: the *support set*. Other points of the same wave, the *query set*, tell how well it was learned. A
# *source* draws such tasks, and those of its test split are never seen in training.

# %%
tasks = kshot.sources.sinusoids(shots=5)
task = tasks.task("test", 1)
print("support:", task.support.inputs.flatten(), "->", task.support.targets.flatten())


# %% [markdown]
# ## Meta-training
#
# MAML (Finn et al., 2017) learns the initial weights of a network. In each step it adapts to the support sets of ten
# training tasks by three gradient steps, and then changes the initial weights such that the adapted networks do
# better on the query sets. What is trained is therefore not the fit of one curve, but how well *adapting* works.


# %%
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


torch.manual_seed(0)
learner = kshot.maml(network(), inner_lr=0.05, steps=3, objective=kshot.objectives.mse)
untrained = kshot.maml(network(), inner_lr=0.05, steps=3, objective=kshot.objectives.mse)
losses = kshot.fit(learner, tasks, steps=120 if QUICK else 1000, tasks_per_step=10, outer_lr=3e-3, mode="vmap")
print(f"query loss: {sum(losses[:20]) / 20:.2f} in the first 20 steps, {sum(losses[-20:]) / 20:.2f} in the last 20")

# %% [markdown]
# ## Adapting to a new curve
#
# `adapt` returns a *state*, everything that is particular to the task, and leaves the learner as it was. With
# `steps=0` nothing adapts: that prediction is what all tasks have in common. The same three steps from random
# weights, on the right, show that it is the initial weights that make the difference.

# %%
x = torch.linspace(-5, 5, 200)[:, None]
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for axis, each, title in ((axes[0], learner, "meta-trained"), (axes[1], untrained, "random initial weights")):
    with torch.no_grad():
        before = each.predict(each.adapt(task.support, steps=0), x)
        after = each.predict(each.adapt(task.support), x)
    axis.plot(x, before, "--", color="grey", label="before adapting")
    axis.plot(x, after, label="after 3 gradient steps")
    axis.plot(task.query.inputs, task.query.targets, ".", color="tab:green", label="queries, not seen")
    axis.plot(task.support.inputs, task.support.targets, "o", color="black", label="the 5 points")
    axis.set_title(title)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# One curve proves nothing. Over many test tasks, with a 95 % interval:

# %%
errors = {
    name: kshot.evaluate(each, tasks, num_tasks=100).metrics["mse"]
    for name, each in {"meta-trained": learner, "random initial weights": untrained}.items()
}
for name, error in errors.items():
    print(f"mean squared error, {name}: {error}")

# %% [markdown]
# ## The same by a run file
#
# A run file names a source, a model, a learner and a target. `kshot.run` trains in rounds until validation tasks meet
# the target, tests once, and fits what an expert would use without meta-learning to the same tasks. On the command
# line it is a YAML file with the same keys: `kshot run sines.yaml`. Meta-SGD also learns a step size for each weight.

# %%
run_file = {
    "name": "sines",
    "source": {"kind": "sinusoids", "shots": 5, "queries": 10},
    "model": {"kind": "mlp", "hidden": [40, 40]},
    "learner": {"kind": "meta_sgd", "inner_lr": 0.05, "steps": 3},
    "train": {"steps_per_round": 30 if QUICK else 400, "tasks_per_step": 10, "outer_lr": 3e-3, "mode": "vmap"},
    "target": "mse <= 0.5",
    "budget": {"rounds": 1 if QUICK else 2},
    "evaluate": {"num_val_tasks": 10 if QUICK else 50, "num_test_tasks": 16 if QUICK else 100},
    "baselines": {"steps": 3 if QUICK else 30, "num_val_tasks": 3 if QUICK else 10},
}
report = kshot.run(run_file)
print(report)

# %% [markdown]
# In a notebook the report shows itself. `report.html` in the run folder has more: charts of the training, tasks with
# their predictions, and checks that the figures can be trusted.

# %%
report
