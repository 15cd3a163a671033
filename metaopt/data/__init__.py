"""Data sets: named images, and the user's own arrays."""

from __future__ import annotations

from metaopt.data.images import Dataset, load_dataset

__all__ = ["Dataset", "load_dataset"]
