"""A user's own data: arrays in an .npz file, or a table in a .csv file. What they may hold is in `load_dataset`."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from metaopt import files
from metaopt.data.dataset import Dataset, Examples, Targets, split_rows, standardised

FRACTIONS = (0.8, 0.1, 0.1)  # training, validation, test, where a file brings no splits of its own
INPUT_NAMES = ("x", "inputs", "images")
TARGET_NAMES = ("y", "label", "labels", "target", "targets")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_UNREADABLE = (ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_ALL = "all"
_Arrays = dict[str, Examples]  # by split, or all of them under `_ALL`; raw, targets () where none are asked for

_found: dict[tuple[str, str | None], Path] = {}


def is_file_name(name: str) -> bool:
    """Whether a data set's name is a path: no named data set has a dot or a slash."""
    return "." in name or "/" in name or os.sep in name


def load_file(name: str, data_dir: str | None, targets: Targets, split_seed: int) -> Dataset:
    """A file as a data set; see `load_dataset`."""
    path = _find(name, data_dir)
    held = path.stat()
    return _load(name, path, (held.st_mtime_ns, held.st_size), targets, split_seed)


def _find(name: str, data_dir: str | None) -> Path:
    given, root = files.place(name), os.environ.get("METAOPT_DATA_DIR")
    places = [files.place(data_dir or ".") / given]
    if (name, data_dir) in _found:  # a path that was found once is found again after a change of folder
        places.append(_found[name, data_dir])
    if data_dir is None and root:
        places.append(files.place(root) / given)
    places = list(dict.fromkeys(place.absolute() for place in places))
    for place in places:
        if os.path.isfile(place):
            _found[name, data_dir] = place
            return place
    tried = ", ".join(f"{place}{files.what_is_wrong(place)}" for place in places)
    raise FileNotFoundError(
        f"data set {name!r} is no file; give the path of an .npz or .csv file, or its folder as `data_dir` or "
        f"METAOPT_DATA_DIR. Tried: {tried}."
    )


@functools.lru_cache(maxsize=8)
def _load(name: str, path: Path, held: tuple[int, int], targets: Targets, split_seed: int) -> Dataset:
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} is neither .npz nor .csv; write one with numpy.savez({path.stem!r}, x=..., y=...).")
    if not held[1]:
        raise ValueError(f"{path} is empty; write it again.")
    try:
        arrays = readers[path.suffix.lower()](path, targets)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    for split, examples in arrays.items():
        _check(str(path) if split == _ALL else f"{path} ({split})", examples)
    shapes = {(examples.inputs.shape[1:], np.shape(examples.targets)[1:]) for examples in arrays.values()}
    if len(shapes) > 1:
        raise ValueError(f"{path} holds splits of different shapes: {', '.join(str(shape) for shape, _ in shapes)}.")
    classes = ()
    if targets == "classes":
        arrays, classes = _numbered(path, arrays)
    if targets == "numbers":
        arrays = {split: _as_numbers(path, examples) for split, examples in arrays.items()}
    inputs, labels = (list(part) for part in zip(*_split(path, arrays, split_seed), strict=True))
    inputs = standardised(inputs) if inputs[0].ndim == 2 else [_pixels(path, images) for images in inputs]
    labels = standardised(labels) if targets == "numbers" else labels
    train, validation, test = map(Examples, inputs, labels)
    return Dataset(name, str(path), sha256, train, validation, test, classes)


# ----- reading --------------------------------------------------------------------------------------------------------


def _read_npz(path: Path, targets: Targets) -> _Arrays:
    parts: dict[str, dict[str, np.ndarray]] = {}
    remedy = "write it with numpy.savez(path, x=..., y=...)"
    try:
        archive = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not an .npz file; {remedy}.") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} holds a single array without a name; {remedy}.")
    with archive:
        for name in archive.files:
            split, part = _role(name)
            if part is None or (part == "targets" and targets == "none"):
                continue
            if part in parts.setdefault(split, {}):
                raise ValueError(f"{path} has two arrays of {part} ({name!r} is one); leave one of them.")
            try:
                parts[split][part] = archive[name]
            except _UNREADABLE as error:
                raise ValueError(
                    f"{path}: array {name!r} cannot be read; Python objects are never unpickled, so write it again as "
                    "numbers or strings."
                ) from error
    wanted = ("inputs",) if targets == "none" else ("inputs", "targets")
    for split, held in parts.items() or [(_ALL, {})]:
        for part in wanted:
            if part not in held:
                name = ("x" if part == "inputs" else "y") + ("" if split == _ALL else f"_{split}")
                names = ", ".join(archive.files) or "no arrays"
                raise ValueError(f"{path} has no array {name!r} ({part}), but {names}; {remedy}.")
    return {split: Examples(held["inputs"], held.get("targets", ())) for split, held in parts.items()}


def _role(name: str) -> tuple[str, str | None]:
    """The split and part that an array's name says: `x_train` and `train_images` are inputs of train."""
    words = name.lower().split("_")
    splits = [_SPLITS[word] for word in words if word in _SPLITS]
    rest = [word for word in words if word not in _SPLITS]
    if len(splits) > 1 or len(rest) != 1:
        return _ALL, None
    part = "inputs" if rest[0] in INPUT_NAMES else "targets" if rest[0] in TARGET_NAMES else None
    return splits[0] if splits else _ALL, part


def _read_csv(path: Path, targets: Targets) -> _Arrays:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            cells = [cell.strip() for cell in next(csv.reader(file), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a text of columns between commas: {error}.") from error
    called = [index for index, cell in enumerate(cells) if cell.lower() in TARGET_NAMES]
    if len(called) > 1:
        raise ValueError(f"{path} has {len(called)} columns that could hold the targets; leave one of them.")
    header = bool(called) or not any(map(_is_number, cells))
    if header and "" in cells:
        raise ValueError(f"{path}: a column has no name; write the table without an index (pandas: index=False).")
    column = called[0] if called else None if targets == "none" else len(cells) - 1
    if len(cells) < (1 if column is None else 2):
        raise ValueError(f"{path} has {len(cells)} column, and needs inputs and a target between commas.")
    codes: dict[str, int] = {}
    converters: dict[int | str, Any] = {}
    if column is not None and targets != "numbers":  # a target that is left out may be a word too
        converters[column] = lambda text: codes.setdefault(text.strip(' \t"'), len(codes))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a table without rows
            table = np.loadtxt(
                path,
                delimiter=",",
                skiprows=int(header),
                quotechar='"',
                comments=None,
                encoding="utf-8-sig",
                ndmin=2,
                converters=converters or None,
            )
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {error}; words may be labels alone.") from error
    if not table.size:
        raise ValueError(f"{path} holds no examples; give it rows below its header.")
    if column is None:
        return {_ALL: Examples(table, ())}
    inputs, target = np.delete(table, column, axis=1), table[:, column]
    if targets == "none":
        return {_ALL: Examples(inputs, ())}
    if targets == "numbers":
        return {_ALL: Examples(inputs, target)}
    return {_ALL: Examples(inputs, _labels(path, list(codes))[target.astype(int)])}


def _labels(path: Path, texts: list[str]) -> np.ndarray:
    """The labels of a column as whole numbers if all of them are, as floats if all are numbers, or as words."""
    if "" in texts:
        raise ValueError(f"{path}: an example has no label; leave its row out.")
    for kind in (int, float):
        try:
            return np.array([kind(text) for text in texts])
        except (ValueError, OverflowError):
            continue
    return np.array(texts)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ----- checking and laying out ----------------------------------------------------------------------------------------


def _check(where: str, examples: Examples) -> None:
    """Refuses inputs that are no table and no images, and what does not go with them."""
    inputs, targets = examples
    if inputs.dtype.kind not in "buif":
        raise ValueError(f"{where} holds inputs of type {inputs.dtype}; give numbers.")
    if inputs.ndim not in (2, 3, 4) or not inputs[:1].size:
        raise ValueError(
            f"{where} holds inputs of shape {inputs.shape}; give a table [examples, features] or images "
            "[examples, height, width] or [examples, height, width, colours]."
        )
    if not isinstance(targets, tuple) and targets.shape[:1] != inputs.shape[:1]:
        raise ValueError(f"{where} holds {len(inputs):,} examples, but targets of shape {targets.shape}; give as many.")
    for part, array in (("inputs", inputs), ("targets", targets)):
        if not isinstance(array, tuple) and array.dtype.kind == "f":
            bad = int(np.sum(~(np.abs(array) <= np.finfo(np.float32).max)))
            if bad:
                raise ValueError(f"{where}: {bad:,} of its {part} are nan or infinite; fill in or drop them.")


def _numbered(path: Path, arrays: _Arrays) -> tuple[_Arrays, tuple[str, ...]]:
    """Labels of any whole numbers or words as 0 ... K-1, in their order, and what they were called."""
    for examples in arrays.values():
        labels = examples.targets
        if labels.ndim != 1:
            raise ValueError(f"{path} holds labels of shape {labels.shape}; give one an example, as y.argmax(1) is.")
        if labels.dtype.kind not in "biuUS":
            raise ValueError(
                f"{path} holds labels of type {labels.dtype}, and classes are whole numbers or words; convert them "
                "(y.astype(int)), or predict them as numbers with regression_network."
            )
    together = np.concatenate([examples.targets for examples in arrays.values()])
    together = together.astype(str) if together.dtype.kind == "S" else together
    found, numbers = np.unique(together, return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"{path} holds a single class ({found[0]}); a classifier needs two or more.")
    if len(found) == len(together):
        raise ValueError(f"{path} holds a class of its own for each example; are the labels in another column?")
    borders = np.cumsum([len(examples.targets) for examples in arrays.values()])[:-1]
    parts = np.split(numbers.astype(np.int32), borders)
    numbered = {split: Examples(arrays[split].inputs, part) for split, part in zip(arrays, parts, strict=True)}
    return numbered, tuple(map(str, found.tolist()))


def _as_numbers(path: Path, examples: Examples) -> Examples:
    targets: Any = examples.targets
    if targets.dtype.kind not in "buif" or targets.ndim > 2:
        raise ValueError(
            f"{path} holds targets of type {targets.dtype} and shape {targets.shape}; give numbers [examples] or "
            "[examples, outputs], or predict classes with classifier."
        )
    if np.all(targets == targets[0]):
        raise ValueError(f"{path} holds targets that are all the same; give some that can be told apart.")
    return Examples(examples.inputs, targets.reshape(len(targets), -1))


def _split(path: Path, arrays: _Arrays, split_seed: int) -> list[Examples]:
    given = " and ".join(arrays)
    if _ALL in arrays and len(arrays) > 1:
        raise ValueError(f"{path} holds arrays of a split ({given}) and arrays of none; leave one or the other.")
    if _ALL in arrays:
        return _parts(path, arrays[_ALL], FRACTIONS, split_seed)
    if "train" not in arrays or "test" not in arrays:
        raise ValueError(f"{path} holds arrays of {given} alone; give train and test (validation is optional) or none.")
    if "validation" in arrays:
        if split_seed:
            raise ValueError(f"{path} brings its own splits, so `split_seed` decides nothing; leave it out.")
        return [arrays["train"], arrays["validation"], arrays["test"]]
    train, validation, _ = _parts(path, arrays["train"], (0.9, 0.1, 0.0), split_seed)
    return [train, validation, arrays["test"]]


def _parts(path: Path, examples: Examples, fractions: tuple[float, ...], seed: int) -> list[Examples]:
    try:
        rows = split_rows(len(examples.inputs), fractions, seed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    inputs, targets = examples
    return [Examples(inputs[part], targets if isinstance(targets, tuple) else targets[part]) for part in rows]


def _pixels(path: Path, images: np.ndarray) -> np.ndarray:
    """Images [examples, ...] flattened to float32, whole numbers divided by 255."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    if images.dtype.kind == "f":
        return flat
    if flat.size and not 0 <= flat.min() <= flat.max() <= 255:
        raise ValueError(f"{path} holds whole-number pixels outside 0 ... 255; give uint8, or floats in [0, 1].")
    return flat / np.float32(255)
