"""`kshot export --browser`: one HTML file with the graphs of a run, onnxruntime-web, and what reads examples.

The page works from disk and sends nothing: its content security policy refuses every connection, and scripts are run
only if the page names their hash.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from kshot.app.trained import Adapted, TrainedRun, load
from kshot.files import check_writable, write_text
from kshot.integrations.browser.description import describe
from kshot.integrations.browser.runtime import SCRIPT, VERSION, WASM, runtime_files
from kshot.integrations.onnx import NotExportable, adapt_model, adapted_model, predict_model
from kshot.integrations.onnx.run import example, finished
from kshot.types import to

FOLDER = Path(__file__).parent


def export_page(
    run_dir: Path | str, out: Path | str, *, state: Path | str | None = None, runtime: Path | str | None = None
) -> list[str]:
    """Write a page on which a trained run adapts and predicts in a browser, and say what was written.

    Args:
        run_dir: folder of the run.
        out: the HTML file; it is not overwritten.
        state: file of an adapted state; the page then predicts alone.
        runtime: onnxruntime-web, as `runtime_files` takes it.

    Raises:
        ValueError: a run or a state that cannot be read, whose inputs a page does not read, or which has no graphs; a
            file that exists; onnxruntime-web is missing or another version.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--browser writes one page: name a file such as {out / 'page.html'}, not {out}")
    if out.exists():
        raise ValueError(f"{out} exists and is never overwritten; choose another --browser")
    check_writable(out)
    files = runtime_files(None if runtime is None else Path(runtime))
    run = load(run_dir)
    adapted = None if state is None else run.load_state(state)
    about = describe(run, adapted)
    graphs = _graphs(run, adapted)
    if "adapt" in graphs and about["targets"]["kind"] == "classes":
        about["targets"]["ways"] = _fixed_ways(graphs["adapt"])
    packed = {"runtime": files[SCRIPT], "wasm": files[WASM]}
    packed |= {name: model.SerializeToString() for name, model in graphs.items()}
    page = render(about, {name: _packed(content) for name, content in packed.items()})
    write_text(out, page)
    doing = "adapts and predicts" if "adapt" in graphs else "predicts"
    return [f"{out}: {doing} in a browser, from disk and offline; {len(page) / 1e6:.1f} MB"]


def render(about: dict[str, Any], packed: dict[str, str]) -> str:
    """The page: `about` of `describe`, and packed files by name: "runtime", "wasm", "predict" and perhaps "adapt"."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    kind = about["inputs"]["kind"]
    scripts = [
        (FOLDER / name).read_text() for name in ("session.js", f"{kind}.js", f"{kind}_form.js", "results.js", "page.js")
    ]
    style = (FOLDER / "page.css").read_text()
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        about=about,
        adapts="adapt" in packed,
        kind=kind,
        packed=packed,
        scripts=[Markup(script) for script in scripts],
        style=Markup(style),
        policy=_policy(scripts, style),
        versions={"kshot": version("kshot"), "runtime": VERSION},
    )


def _graphs(run: TrainedRun, adapted: Adapted | None) -> dict[str, onnx.ModelProto]:
    """The graphs of a page: "predict", and "adapt" unless a state is given."""
    learner, kind, support = run.learner.to("cpu"), run.spec.learner.kind, example(run.shapes)
    if adapted is not None:
        model = adapted_model(learner, to(adapted.state, "cpu"), support.inputs, kind=kind)
        return {"predict": finished(model, run, adapted)}
    try:
        adapt = finished(adapt_model(learner, support, kind=kind), run)
    except NotExportable as error:
        raise ValueError(f"{error}. A page can predict from a state of `kshot adapt`: name it by --state") from error
    predict = finished(predict_model(learner, support, support.inputs, kind=kind), run)
    outputs = [value.name for value in predict.graph.output]
    if outputs != ["prediction"]:
        raise ValueError(f"predict of {kind} gives {', '.join(outputs)}, and a page shows one prediction")
    return {"adapt": adapt, "predict": predict}


def _fixed_ways(adapt: onnx.ModelProto) -> int | None:
    """The number of classes that a graph takes; None if it is any."""
    (targets,) = [value for value in adapt.graph.input if value.name == "targets"]
    dim = targets.type.tensor_type.shape.dim[-1]
    return None if dim.dim_param else int(dim.dim_value)


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _policy(scripts: list[str], style: str) -> str:
    """A content security policy: no connection of any kind, and the page's own scripts and style alone.

    onnxruntime-web is a module, which a page on disk can only import from a blob of its own.
    """
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src {' '.join(hashes)} blob: 'wasm-unsafe-eval'; style-src 'sha256-{style_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )
