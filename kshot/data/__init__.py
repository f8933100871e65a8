"""Files to rows and arrays, without any notion of tasks."""

from kshot.data.dataset import ArrayDataset, Dataset, ImageDataset

__all__ = ["ArrayDataset", "Dataset", "ImageDataset"]
