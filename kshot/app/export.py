"""`kshot export`: a trained run as files of another library."""

from __future__ import annotations

from pathlib import Path

from kshot.app.importing import load as named
from kshot.app.trained import load


def export_run(
    run_dir: Path,
    *,
    onnx: Path | None = None,
    browser: Path | None = None,
    keras: Path | None = None,
    state: Path | None = None,
    runtime: Path | None = None,
) -> list[str]:
    """Write the graphs, the page or the Keras model of a run, and say in a sentence each what was written or not.

    Integrations are found by name, since they import this package and not the other way round.

    Raises:
        ValueError: not one of the formats; and as the export of each.
    """
    if [onnx, browser, keras].count(None) != 2:
        raise ValueError("name one format to export to: --onnx FOLDER, --browser PAGE.html, or --keras FILE")
    if runtime is not None and browser is None:
        raise ValueError("--onnxruntime-web is a part of the page that --browser writes: name both, or leave it out")
    if browser is not None:
        return named("kshot.integrations.browser:export_page")(run_dir, browser, state=state, runtime=runtime)
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
