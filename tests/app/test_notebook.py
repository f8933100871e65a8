"""Progress in notebooks: one line that is replaced, of plain text, without ipywidgets."""

import sys
import types

import pytest
from rich.console import Console

from kshot.app import progress
from kshot.app.progress import Display
from kshot.app.run import run
from kshot.app.spec import load_spec


class Shown:
    """Stands for `IPython.display`: keeps what each output area shows, and how often it was replaced."""

    def __init__(self):
        self.areas, self.updates = [], []

    def display(self, *data, raw=False, display_id=False, **options):
        self.areas.append(data[0] if raw else data[0]._repr_mimebundle_((), ()))
        if not display_id:
            return None
        place = len(self.areas) - 1
        self.updates.append(data[0]["text/plain"])

        def update(new, raw):
            assert raw
            self.areas[place] = new
            self.updates.append(new["text/plain"])

        return types.SimpleNamespace(update=update)


@pytest.fixture
def shown(monkeypatch):
    shown, module = Shown(), types.ModuleType("IPython.display")
    module.display = shown.display
    package = types.ModuleType("IPython")
    package.display = module
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def test_steps_replace_one_line_in_a_notebook(shown, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Display(Console(force_jupyter=True), "mse") as display:
        for done in range(101):
            display.advance("train", done, 100, "loss 0.5")
            clock[0] += 0.1
        display.advance("validate", 1, 2)
        assert len(shown.areas) == 1
        assert shown.areas[0] == {"text/plain": "validate 1/2  0:00:00"}
    assert shown.updates[0] == "train 0/100  loss 0.5  0:00:00"
    assert "train 30/100  loss 0.5  0:00:03  left 0:00:07" in shown.updates
    assert shown.updates[-3] == "train 100/100  loss 0.5  0:00:10"
    assert 30 < len(shown.updates) < 40, "at most 4 a second"
    assert shown.areas == [{"text/plain": ""}]


def test_a_run_in_a_notebook_shows_its_rounds_below_the_line(shown, tmp_path):
    overrides = [
        "train.steps_per_round=4",
        "budget={rounds: 2}",
        "evaluate={num_val_tasks: 4, num_test_tasks: 4, shots: []}",
    ]
    spec = load_spec("sinusoid", [*overrides, "baselines={names: [support_mean]}"])
    run(spec, tmp_path / "run", console=Console(force_jupyter=True))
    (line,) = [area for area in shown.areas if set(area) == {"text/plain"}]
    assert line == {"text/plain": ""}
    assert any(update.startswith("train 8/") for update in shown.updates)
    assert any(update.startswith("validate 4/4") for update in shown.updates)
    rounds = [area["text/plain"] for area in shown.areas if "text/html" in area]
    assert sum("round " in text for text in rounds) == 2, rounds


def test_no_line_is_shown_elsewhere(shown, capsys):
    for console in (Console(force_terminal=False), Console(force_terminal=True)):
        with Display(console, "mse") as display:
            display.advance("train", 1, 1)
    assert shown.areas == []
