"""The examples of the documents, and code of a user, in the eyes of pyright: `make types`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURATION = {
    "typeCheckingMode": "standard",
    "reportMissingImports": "none",  # the migration guide shows code for other libraries
    "reportUndefinedVariable": "none",  # of an example that goes on where another one stopped
    "strict": ["user.py"],
}
USER = '''
"""A user's code under the strict rules of pyright."""

from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn

import kshot

model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
tasks = kshot.sources.sinusoids(shots=3)
learner = kshot.maml(model, inner_lr=0.05, objective=kshot.objectives.mse)
assert_type(learner, kshot.learners.GradientLearner)
assert_type(kshot.protonet(nn.Flatten()), kshot.learners.HeadLearner)
losses = kshot.fit(learner, tasks, steps=2, mode="vmap")
assert_type(losses, list[float])
evaluation = kshot.evaluate(learner, tasks, num_tasks=10)
assert_type(evaluation, kshot.evaluation.Evaluation)
interval = evaluation.metrics["mse"]
assert_type(interval, kshot.evaluation.Interval)
assert_type(interval.mean, float)
for name, baseline in kshot.evaluation.baselines(tasks).items():
    print(name, kshot.evaluate(baseline, tasks, num_tasks=10).metrics["mse"])
task = tasks.task("test", 0)
assert_type(task, kshot.Task)
state = learner.adapt(task.support)
kshot.save_state(Path("state.safetensors"), state, {"classes": "a,b"})
run = kshot.load("runs/sinusoid")
assert_type(run.learner, kshot.Learner)


class Constant(kshot.Learner):
    """A learner of a user."""

    def _adapt(self, support: kshot.Batch) -> dict[str, Tensor]:
        return {"mean": torch.zeros(1)}

    def predict(self, state: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return state["mean"].expand(len(inputs), 1)


print(kshot.evaluate(Constant(kshot.objectives.mse), tasks, num_tasks=10))
splits = {name: {f"class {number}": range(9 * number, 9 * number + 9) for number in range(5)} for name in ("train",)}
classes = kshot.tasks.ClassTasks(torch.zeros(45, 3).numpy(), splits)
'''
KNOWN = ["set_score_request"]
"""What pyright is right about, in libraries that kshot is used with: methods that scikit-learn annotates as None."""


@pytest.mark.slow
def test_examples_and_strict_code_of_a_user_have_no_errors(tmp_path):
    pytest.importorskip("pyright", reason="pyright is not installed: make types")
    for document in DOCUMENTS:
        blocks = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
        for number, block in enumerate(blocks):
            (tmp_path / f"{document.stem.replace('-', '_')}_{number}.py").write_text(block)
        if document.stem == "extending":
            parts = [block for block in blocks if "from my_parts import" not in block]
            (tmp_path / "my_parts.py").write_text("\n\n".join(parts))
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(CONFIGURATION | {"extraPaths": [str(ROOT)]}))
    words = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = [f"{Path(each['file']).name}:{each['range']['start']['line'] + 1}: {each['message']}" for each in found]
    assert not [line for line in lines if not any(known in line for known in KNOWN)]
