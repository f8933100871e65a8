"""Learners train in the loops of Lightning and accelerate as in plain PyTorch."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader

import kshot
from kshot.types import unstack


def a_learner():
    torch.manual_seed(0)
    return kshot.maml(kshot.models.mlp(1, 1, hidden=[8]), inner_lr=0.05, steps=2, objective=kshot.objectives.mse)


def trained(learner, optimizer, source, *, steps, backward=torch.Tensor.backward):
    """The weights after outer steps on four tasks each."""
    for step in range(steps):
        tasks = unstack(source.stack("train", range(4 * step, 4 * step + 4)))
        optimizer.zero_grad()
        backward(torch.stack([learner(task) for task in tasks]).mean())
        optimizer.step()
    return copy.deepcopy(learner.state_dict())


def test_accelerate_gives_the_weights_of_plain_pytorch():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    source, learner = kshot.sources.sinusoids(shots=3), a_learner()
    expected = trained(learner, torch.optim.Adam(learner.parameters(), lr=1e-2), source, steps=3)
    assert any(not torch.equal(value, expected[name]) for name, value in a_learner().state_dict().items())

    accelerator, learner = accelerate.Accelerator(cpu=True), a_learner()
    learner, optimizer = accelerator.prepare(learner, torch.optim.Adam(learner.parameters(), lr=1e-2))
    found = trained(learner, optimizer, source, steps=3, backward=accelerator.backward)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    task = source.task("test", 0)
    adapted = accelerator.unwrap_model(learner).adapt(task.support)
    assert accelerator.unwrap_model(learner).predict(adapted, task.query.inputs).shape == task.query.targets.shape


@pytest.mark.filterwarnings("ignore")  # of Lightning, on numbers of workers and on what the machine has
def test_lightning_gives_the_weights_of_plain_pytorch(tmp_path, lightning_page):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    source, learner = kshot.sources.sinusoids(shots=3), a_learner()
    expected = trained(learner, torch.optim.Adam(learner.parameters(), lr=1e-2), source, steps=2)
    module = lightning_page["MetaLearning"](a_learner(), outer_lr=1e-2)
    tasks = lightning_page["Tasks"]
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    loaders = [DataLoader(tasks(source, split, 8), batch_size=4) for split in ("train", "val")]
    trainer.fit(module, *loaders)
    assert trainer.global_step == 2
    for name, value in module.learner.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    (figures,) = trainer.validate(module, loaders[1], verbose=False)
    errors = kshot.evaluate(module.learner, source, split="val", num_tasks=8, audit=False).metrics["mse"]
    assert figures["val_mse"] == pytest.approx(errors.mean, rel=1e-4)
    found = {name: value.clone() for name, value in module.learner.state_dict().items()}
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    again = lightning_page["MetaLearning"].load_from_checkpoint(
        tmp_path / "module.ckpt", learner=a_learner(), outer_lr=1e-2
    )
    assert all(torch.equal(value, found[name]) for name, value in again.learner.state_dict().items())
