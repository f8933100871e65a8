"""Export to ONNX: `predict` and, where it takes no gradient steps, `adapt`, to run a learner without torch.

`export_run` is `kshot export`; `predict_model`, `adapt_model` and `adapted_model` make the graphs of any learner.
"""

try:
    from kshot.integrations.onnx.graphs import NotExportable, adapt_model, adapted_model, predict_model
    from kshot.integrations.onnx.run import export_run
except ModuleNotFoundError as error:
    raise ImportError(
        f"the export to ONNX needs {error.name}, which is not installed: pip install 'kshot[onnx]'"
    ) from error

__all__ = ["NotExportable", "adapt_model", "adapted_model", "export_run", "predict_model"]
