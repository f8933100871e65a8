"""Export to ONNX: `predict` and, where it takes no gradient steps, `adapt`, to run a learner without torch.

`export_run` is `kshot export`; `predict_model`, `adapt_model` and `adapted_model` make the graphs of any learner.
"""

from importlib.util import find_spec

for package in ("onnx", "onnxscript", "onnxruntime"):
    if find_spec(package) is None:
        raise ImportError(f"the export to ONNX needs {package}, which is not installed: pip install 'kshot[onnx]'")

from kshot.integrations.onnx.graphs import NotExportable, adapt_model, adapted_model, predict_model  # noqa: E402
from kshot.integrations.onnx.run import export_run  # noqa: E402

__all__ = ["NotExportable", "adapt_model", "adapted_model", "export_run", "predict_model"]
