"""Trained runs on the Hugging Face Hub: `HubRun` saves one as a folder of the Hub, and opens such a folder."""

try:
    from kshot.integrations.huggingface.hub import HubRun
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the Hub needs the package huggingface_hub: pip install 'kshot[hub]'") from error

__all__ = ["HubRun"]
