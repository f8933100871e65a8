"""A run that a signal ends: it writes a checkpoint, says how to resume, and ends as an undisturbed one afterwards."""

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from app.signalling import PLACE, SENT
from run_files import SINUSOID
from safetensors.torch import load_file

import kshot as library
from kshot.sources.functions import Sinusoids

pytestmark = pytest.mark.usefixtures("without_charts")

RUN = (
    SINUSOID.replace("scratch, ", "").replace("kind: sinusoids", "kind: app.signalling:sinusoids")
    + "pretrain: {steps: 4, batch: 20}\n"
)


def weights(run: Path, stage: str = "train", pattern: str = "round-*") -> dict[str, torch.Tensor]:
    """Those of the last round."""
    return load_file(sorted((run / "checkpoints" / stage).glob(pattern))[-1] / "weights.safetensors")


def events(run: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event for event in lines if event["kind"] == kind]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def run(kshot, tmp_path, undisturbed, monkeypatch):
    (tmp_path / "run.yaml").write_text(RUN)
    if not undisturbed.exists():
        assert kshot("run", "run.yaml", "--out", undisturbed).code == 0

    def call(place, *words):
        monkeypatch.setenv(PLACE, place)
        monkeypatch.setenv(SENT, str(tmp_path / "sent"))
        return kshot("run", "run.yaml", "--out", "out", *words)

    return call


@pytest.mark.parametrize(
    ("place", "checkpoint"),
    [
        ("pretrain 2", "pretrain/step-0000003"),
        pytest.param("train 4-5", "train/step-0000003", marks=pytest.mark.slow),
        ("train 6-7", "train/step-0000004"),  # in the last step of a round
        pytest.param("val 2", None, marks=pytest.mark.slow),
        ("test 3", None),
    ],
)
def test_a_run_ends_by_a_signal_and_resumes_to_the_same_end(run, kshot, tmp_path, undisturbed, place, checkpoint):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    ended = run(place)
    assert ended.code == 143
    assert "Ended by SIGTERM. Resume by: kshot run run.yaml --out out --resume" in ended.err
    assert {each: signal.getsignal(each) for each in before} == before
    stopped = events(tmp_path / "out", "stopped")
    if checkpoint is None:
        assert not stopped
    else:
        assert [f"{checkpoint.split('/')[0]}/{event['checkpoint']}" for event in stopped] == [checkpoint]
        assert (tmp_path / "out" / "checkpoints" / checkpoint / "meta.json").exists()
    assert run(place, "--resume").code == 0
    for stage, pattern in {"pretrain": "step-0000004*", "train": "round-*"}.items():
        expected = weights(undisturbed, stage, pattern)
        for name, weight in weights(tmp_path / "out", stage, pattern).items():
            assert torch.equal(weight, expected[name]), name
    figures = [json.loads((each / "report.json").read_text()) for each in (tmp_path / "out", undisturbed)]
    assert figures[0]["test"] == figures[1]["test"]
    assert [each["val"] for each in figures[0]["rounds"]] == [each["val"] for each in figures[1]["rounds"]]
    assert kshot("doctor", "out").code == 0


def test_a_run_in_python_leaves_the_handlers_as_they_are(tmp_path):
    found = set()

    class Recording(Sinusoids):
        def stack(self, split, indices):
            found.add(signal.getsignal(signal.SIGTERM))
            return super().stack(split, indices)

    def of_the_user(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, of_the_user)
    try:
        source = Recording(10, 10, 0.0, library.objectives.mse, 0)
        library.run(yaml.safe_load(SINUSOID) | {"source": source, "baselines": {"names": []}}, tmp_path / "run")
        found.add(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == {of_the_user}
