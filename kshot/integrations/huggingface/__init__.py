"""Trained runs on the Hugging Face Hub: `HubRun` saves one as a folder of the Hub, and opens such a folder."""

try:
    import huggingface_hub  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the Hub needs the package huggingface_hub: pip install 'kshot[hub]'") from error

from kshot.integrations.huggingface.hub import HubRun

__all__ = ["HubRun"]
