# %% [markdown]
# # A training loop and a learner of your own
#
# **Shows** kshot as a library of functions: `adapt`, `predict` and a loss in a loop that is yours, with any optimiser
# of PyTorch; a learner of your own in twenty lines; and a fair comparison of two learners.
#
# **Needs** `pip install kshot`. **Takes** about a minute on two cores; with `QUICK = True` some seconds, with worse
# figures. The characters are drawn from fonts when they are first needed.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import kshot
from kshot.evaluation import paired_difference
from kshot.testing import check_learner

QUICK = False

# %% [markdown]
# ## Tasks
#
# Five characters of a script that no training task has, one drawing of each, and 75 others to be classified. A batch
# is a named tuple of `inputs`, `targets` (one-hot) and `weight`; a task is a tuple of two batches.

# %%
tasks = kshot.sources.glyphs(ways=5, shots=1, queries=15)
task = tasks.task("train", 0)
print("support:", tuple(task.support.inputs.shape), tuple(task.support.targets.shape))
print("query:  ", tuple(task.query.inputs.shape), tuple(task.query.targets.shape))

# %% [markdown]
# ## The loop
#
# A learner is an `nn.Module`, whose parameters are those that meta-training changes. `adapt` and `predict` are pure
# functions of one task and are differentiable, so the meta-gradient is that of plain PyTorch: no context managers, no
# copies of the model. Everything else is up to you: here AdamW, a one-cycle schedule, and clipping.


# %%
def train(learner: kshot.Learner, steps: int, tasks_per_step: int = 4) -> list[float]:
    """Train a learner, and return the loss of each step."""
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    losses = []
    for step in range(steps):
        loss = torch.zeros(())
        for number in range(step * tasks_per_step, (step + 1) * tasks_per_step):
            task = tasks.task("train", number)
            state = learner.adapt(task.support)
            prediction = learner.predict(state, task.query.inputs)
            loss = loss + learner.objective.loss(prediction, task.query) / tasks_per_step
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# `learner(task)` is short for the three lines in the middle. `torch.func.vmap(learner)(tasks.stack("train",
# range(4)))` computes several tasks at once, which pays off for learners that take gradient steps; `kshot.fit` does
# so by itself.
#
# ## A learner
#
# A prototypical network classifies by the nearest class mean. One drawing is a poor estimate of a class mean: this
# learner draws the means towards their common mean, by a share that it learns for each feature, and weights the
# features by scales that it learns as well. A learner defines `_adapt` and `predict`, for one task. The state is a
# dict of tensors; rows of weight 0 are padding and must have no effect.


# %%
class ShrunkenPrototypes(kshot.Learner):
    """Class means, shrunk towards their mean by a learned share, and distances with learned scales."""

    def __init__(self, embedding: nn.Module, width: int) -> None:
        super().__init__(kshot.objectives.classification)
        self.embedding = embedding
        self.share = nn.Parameter(torch.zeros(width))  # of the class mean, before the sigmoid
        self.log_scale = nn.Parameter(torch.zeros(width))

    def _adapt(self, support: kshot.Batch) -> dict[str, torch.Tensor]:
        features, classes = self.embedding(support.inputs), support.targets * support.weight[:, None]
        count = classes.sum(0)  # (classes,)
        means = classes.mT @ features / count.clamp_min(1)[:, None]
        common = classes.sum(1) @ features / count.sum()
        return {"prototypes": common + self.share.sigmoid() * (means - common), "present": count > 0}

    def predict(self, state: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        offset = self.embedding(inputs)[:, None] - state["prototypes"]  # (queries, classes, width)
        return kshot.objectives.only_present(-(self.log_scale.exp() * offset.square()).sum(-1), state["present"])


# %% [markdown]
# `check_learner` runs the contract of all learners on it: that adapting changes no weight, that padding and the order
# of the examples have no effect, that the meta-gradient is exact by finite differences, any number of classes, and
# more. It raises an error that names the check that fails.

# %%
check_learner(lambda ways: ShrunkenPrototypes(nn.Linear(4, 8), width=8), inputs=(4,))

# %% [markdown]
# ## A fair comparison
#
# Both learners get the same network, the same initial weights, the same tasks and the same loop. They are compared on
# *validation* tasks, and by the difference on each task: the interval of the difference is much narrower than those
# of the two figures.


# %%
def embedding() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 64))


learners = {"prototypes": kshot.protonet(embedding()), "shrunken": ShrunkenPrototypes(embedding(), width=64)}
num_val_tasks, found = 20 if QUICK else 300, {}
for name, learner in learners.items():
    plt.plot(train(learner, steps=40 if QUICK else 600), label=name, linewidth=0.8)
    found[name] = kshot.evaluate(learner, tasks, split="val", num_tasks=num_val_tasks)
    print(name, found[name].metrics["accuracy"])
difference = paired_difference(found["shrunken"], found["prototypes"], "accuracy")
print(f"shrunken - prototypes, task by task: {difference.mean:+.4f} ± {difference.ci95:.4f} (p = {difference.p:.2g})")
plt.xlabel("step")
plt.ylabel("query loss of training tasks")
plt.legend()
plt.show()

# %% [markdown]
# The test split is read once, by the learner that validation chose. kshot keeps a record of who has read it, and
# warns if a learner was chosen, or trained further, after a look at the test tasks. As a baseline, the class means of
# pixels.

# %%
best = max(found, key=lambda name: found[name].metrics["accuracy"].mean)
num_test_tasks = 30 if QUICK else 300
pixels = kshot.evaluate(kshot.protonet(nn.Flatten()), tasks, num_tasks=num_test_tasks)
test = kshot.evaluate(learners[best], tasks, num_tasks=num_test_tasks)
print(f"{best}, test: {test.metrics['accuracy']}; class means of pixels: {pixels.metrics['accuracy']}")
