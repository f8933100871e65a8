"""One HTML page that adapts and predicts in a browser, without a network: `kshot export --browser`."""

from kshot.integrations.browser.page import export_page

__all__ = ["export_page"]
