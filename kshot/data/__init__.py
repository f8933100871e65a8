"""Raw files to rows and arrays; nothing here knows of tasks."""

from kshot.data.dataset import ArrayDataset, Dataset, ImageDataset

__all__ = ["ArrayDataset", "Dataset", "ImageDataset"]
