"""Data sets: named ones, and files of the user's own."""

from __future__ import annotations

from metaopt.data.dataset import Dataset, Examples
from metaopt.data.loading import load_dataset

__all__ = ["Dataset", "Examples", "load_dataset"]
