"""Raw files to rows and arrays; nothing here knows of tasks."""

from kshot.data.dataset import ArrayExamples, Examples, ImageExamples

__all__ = ["ArrayExamples", "Examples", "ImageExamples"]
