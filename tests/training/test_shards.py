"""Two processes that share the frozen weights of a pretrained model train and evaluate as one that has them all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training.in_shards import KINDS, LED, evaluated, learner_of, trained, write_models

import kshot
from kshot.training import shard_frozen

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'text'")
    pytest.importorskip("peft", reason="peft is not installed; it is in the extra 'text'")
    folder = tmp_path_factory.mktemp("shards")
    write_models(folder)
    return folder


def by_two(folder: Path, *kinds: str) -> list[dict]:
    """What two processes end with."""
    command = [sys.executable, "-m", "training.in_shards", str(folder), *kinds]
    paths = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def ends(folder: Path) -> list[dict]:
    return by_two(folder, KINDS[0])


def check_equal(kind: str, folder: Path, ends: list[dict]) -> None:
    """Both processes end with the same bits, and with what one process ends with but for rounding."""
    alone, (first, second) = trained(kind, folder, shared=False), (end["trained"][kind] for end in ends)
    assert first["weights"].keys() == alone["weights"].keys(), "checkpoints hold what those of one process do"
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-10, atol=1e-10)
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=1e-10)
    assert first["per_task"] == second["per_task"]
    for metric, values in alone["per_task"].items():
        assert first["per_task"][metric] == pytest.approx(values, abs=1e-9), metric


def test_processes_that_share_frozen_weights_train_as_one(folder: Path, ends: list[dict]) -> None:
    check_equal(KINDS[0], folder, ends)


@pytest.mark.slow
def test_they_do_so_by_other_learners_and_models_and_process_0_evaluates_with_the_weights_of_all(folder: Path) -> None:
    ends = by_two(folder, *KINDS[1:])
    for kind in KINDS[1:]:
        check_equal(kind, folder, ends)
    for kind in LED:
        alone, found = evaluated(kind, folder, shared=False), ends[0]["led"][kind]
        assert found.per_task == alone.per_task
        assert [audit.result for audit in found.audits] == [audit.result for audit in alone.audits]


def test_a_process_keeps_its_part_of_each_block_and_one_whole_block_at_a_time(folder: Path, ends: list[dict]) -> None:
    learner, _ = learner_of(KINDS[0], folder)
    frozen = {name: p for name, p in learner.named_parameters() if not p.requires_grad and ".h." in name}
    per_block = 4 * sum(p.numel() for p in frozen.values()) // 3  # their files are of float32 …
    for end in ends:
        assert end["numbers"] == sum(p.numel() for p in learner.parameters())
        assert end["own"] == end["numbers"] - sum(p.numel() for p in frozen.values())
        for part in end["blocks"][:3]:
            assert part == pytest.approx(2 * per_block / 2, rel=0.02)  # … and the learner's of float64
        alive, gathered = end["alive"]
        assert alive == 1 < gathered


def test_an_error_in_one_process_ends_both(ends: list[dict]) -> None:
    too_long, engine = zip(*(end["refused"] for end in ends))
    assert "reads up to 6 tokens, got 7" in too_long[0]
    assert "reads up to 6 tokens, got 7" in too_long[1]
    assert engine[0] == engine[1]
    assert engine[0].startswith("ValueError: weights that processes share (shard_frozen)")
    assert engine[0].endswith("which mode vmap does not do: set mode to loop")


def test_one_process_and_models_without_frozen_weights_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="among several processes, and there is one: start several"):
        shard_frozen(kshot.models.causal_lm(str(folder / "gpt"), rank=2))
    monkeypatch.setattr("kshot.training.shards.has_others", lambda: True)
    for model in (kshot.models.mlp(1, 1), kshot.models.causal_lm(str(folder / "gpt"), rank=None)):
        with pytest.raises(ValueError, match="no frozen weights in the layers of a pretrained model"):
            shard_frozen(model)
