"""`kshot export`: a trained run as files of another library."""

from __future__ import annotations

from pathlib import Path

from kshot.app.importing import load as named
from kshot.app.trained import load


def export_run(run_dir: Path, *, onnx: Path | None, keras: Path | None, state: Path | None) -> list[str]:
    """Write the graphs or the Keras model of a run, and say in a sentence each what was written and what was not.

    Integrations are found by name, since they import this package and not the other way round.

    Raises:
        ValueError: neither or both of the formats; and as the export of each.
    """
    if (onnx is None) == (keras is None):
        raise ValueError("name one format to export to: --onnx FOLDER, or --keras FILE")
    if onnx is not None:
        return named("kshot.integrations.onnx:export_run")(run_dir, onnx, state=state)
    assert keras is not None  # as onnx is None
    run = load(run_dir)
    adapted = None if state is None else run.load_state(state).state
    about = named("kshot.integrations.keras:export_keras")(run.learner, keras, state=adapted)
    said = [f"model in {keras}, and how it adapts in {about}"]
    if run.preprocessor is not None:
        said.append("the model takes inputs as kshot.load(…).preprocessor makes them of your files")
    return said
