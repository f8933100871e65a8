"""`kshot export`: a trained run as a file of another library."""

from __future__ import annotations

from pathlib import Path

from kshot.app.importing import load as named
from kshot.app.trained import load


def export_run(run_dir: Path, file: Path, state_file: Path | None = None) -> None:
    """Write the Keras model of a run, or that of an adapted state, and the inner steps as JSON beside it."""
    run = load(run_dir)
    state = None if state_file is None else run.load_state(state_file).state
    about = named("kshot.integrations.keras:export_keras")(run.learner, file, state=state)
    print(f"model in {file}, and how it adapts in {about}")
    if run.preprocessor is not None:
        print("the model takes inputs as kshot.load(…).preprocessor makes them of your files")
