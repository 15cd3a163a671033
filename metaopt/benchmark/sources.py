"""The data that the suites read: all of it comes with Python or with packages that metaopt depends on."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaopt.data import Examples
from metaopt.data.dataset import hash_of, split_rows, standardised
from metaopt.types import DataSource

TEST_SHARE = 0.2


class Source(NamedTuple):
    """Splits, and what a run records of where they come from."""

    splits: dict[str, Any]  # "train" and "test"
    source: DataSource


def _source(name: str, where: str, *arrays: np.ndarray) -> DataSource:
    return DataSource(name, where, hash_of(arrays))


def _sklearn() -> str:
    import sklearn

    return f"scikit-learn {sklearn.__version__}"


@functools.cache
def table(name: str) -> Source:
    """`iris`, `wine` or `breast_cancer`: standardised inputs, classes."""
    import sklearn.datasets

    inputs, targets = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.int32)
    train, _, test = split_rows(len(targets), (1 - TEST_SHARE, 0, TEST_SHARE), 0)
    scaled = standardised([inputs[train], inputs[test]])
    splits = {"train": Examples(scaled[0], targets[train]), "test": Examples(scaled[1], targets[test])}
    return Source(splits, _source(name, _sklearn(), inputs, targets))


@functools.cache
def linnerud() -> Source:
    """Counts of three exercises by weight, waist and pulse, of 20 men; too few to hold any back."""
    from sklearn.datasets import load_linnerud

    counts, body = (np.asarray(each, np.float64) for each in load_linnerud(return_X_y=True))
    train = Examples(standardised([body])[0], counts.astype(np.float32))
    return Source({"train": train}, _source("linnerud", _sklearn(), counts, body))


# ----- pictures -------------------------------------------------------------------------------------------------------


@functools.cache
def picture(name: str, side: int) -> tuple[np.ndarray, DataSource]:
    """`china` or `flower`, grey, [side, side] in [0, 1]."""
    grey = _grey(name)
    step = grey.shape[0] // side
    mean = grey[: side * step, : side * step].reshape(side, step, side, step).mean(axis=(1, 3))
    return mean.astype(np.float32), _source(name, _sklearn(), grey)


def _grey(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image(f"{name}.jpg"), np.float64).mean(axis=-1) / 255


@functools.cache
def patches(name: str, num_train: int = 1536, num_test: int = 384) -> Source:
    """8 by 8 patches [n, 64] of a picture at half its size, mean 0 and variance 1; the test lies to the right."""
    grey = _grey(name)
    height, width = grey.shape[0] // 2, grey.shape[1] // 2
    small = grey[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    cut, rng = int(width * (1 - TEST_SHARE)), np.random.default_rng(0)
    parts = []
    for part, num in ((small[:, :cut], num_train), (small[:, cut:], num_test)):
        views = np.lib.stride_tricks.sliding_window_view(part, (8, 8)).reshape(-1, 64)
        parts.append(views[rng.choice(len(views), num, replace=False)])
    mean, deviation = parts[0].mean(), parts[0].std()
    train, test = (((part - mean) / deviation).astype(np.float32) for part in parts)
    return Source({"train": train, "test": test}, _source(name, _sklearn(), grey))


LETTERS = "abcdefghijklmnopqrstuvwxyz"
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
TEST_FONTS = ("DejaVuSansMono-Bold", "DejaVuSerif-Italic", "STIXGeneralBol")


@functools.cache
def glyphs() -> Source:
    """Letters of both cases in matplotlib's fonts, upright and turned, [n, 16, 16, 1]; three fonts are the test."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    def drawn(letter: str, font: Any, angle: int) -> np.ndarray:
        canvas = Image.new("L", (48, 48))
        ImageDraw.Draw(canvas).text((24, 24), letter, fill=255, font=font, anchor="mm")
        return np.asarray(canvas.rotate(angle).resize((16, 16), Image.Resampling.BOX), np.float32) / 255

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    splits: dict[str, Any] = {}
    for split, names in (("train", [name for name in FONTS if name not in TEST_FONTS]), ("test", TEST_FONTS)):
        fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 36) for name in names]
        rows = [
            (drawn(shown, font, angle), label)
            for font in fonts
            for label, letter in enumerate(LETTERS)
            for shown in (letter, letter.upper())
            for angle in (-12, 0, 12)
        ]
        images = np.stack([image for image, _ in rows])[..., None]
        splits[split] = Examples(images, np.asarray([label for _, label in rows], np.int32))
    arrays = [array for split in splits.values() for array in split]
    return Source(splits, _source("glyphs", f"matplotlib {matplotlib.__version__}", *arrays))


# ----- texts ----------------------------------------------------------------------------------------------------------


@functools.cache
def licence() -> tuple[str, DataSource]:
    """The terms of the Apache licence, which are the same in every package under it; lower case, single spaces."""
    for package in ("jax", "flax", "optax", "jaxlib", "chex", "metaopt-jax"):
        try:
            held = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for path in held:
            if path.name.startswith("LICENSE"):
                text = path.locate().read_text(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue]
                found = re.search("TERMS AND CONDITIONS FOR USE.*END OF TERMS AND CONDITIONS", text, re.DOTALL)
                if found:
                    terms = " ".join(found.group().lower().split())
                    return terms, _source("licence", package, np.frombuffer(terms.encode(), np.uint8))
    raise FileNotFoundError(
        "no installed package carries the Apache licence; reinstall jax, whose LICENSE file is missing."
    )


@functools.cache
def licence_windows(length: int, stride: int) -> tuple[Source, int]:
    """Pieces of the licence [n, length] as numbers of its signs, and how many signs there are; the end is the test."""
    text, source = licence()
    signs = sorted(set(text))
    numbers = np.asarray([signs.index(sign) for sign in text], np.int32)
    cut = int(len(numbers) * (1 - TEST_SHARE))
    parts = {"train": numbers[:cut], "test": numbers[cut:]}
    views = {
        split: np.lib.stride_tricks.sliding_window_view(part, length)[::stride].copy() for split, part in parts.items()
    }
    return Source(views, source), len(signs)


@functools.cache
def licence_words() -> tuple[np.ndarray, int, DataSource]:
    """The licence as numbers of its words, the most frequent first, and how many words there are."""
    text, source = licence()
    words = re.findall("[a-z]+", text)
    known, counts = np.unique(words, return_counts=True)
    ranked = {word: index for index, word in enumerate(known[np.argsort(-counts, kind="stable")])}
    return np.asarray([ranked[word] for word in words], np.int32), len(ranked), source


NAME_LENGTH = 24
SIGNS = " -ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"  # numbered from 1; 0 ends a name


@functools.cache
def character_names(num_train: int = 1536, num_test: int = 384) -> Source:
    """Names of Unicode's characters [n, 25], cut or padded: in version 3.2, which every Python carries, they stay."""
    database = unicodedata.ucd_3_2_0
    names = [database.name(chr(code), "") for code in range(0x20, 0x3000)]
    kept = [name for name in names if name and not re.search("SYLLABLE|RADICAL|BRAILLE", name)]
    chosen = sorted({name[:NAME_LENGTH] for name in kept})
    order = np.random.default_rng(0).permutation(len(chosen))[: num_train + num_test]
    rows = np.zeros((len(order), NAME_LENGTH + 1), np.int32)
    for row, index in zip(rows, order, strict=True):
        numbers = [SIGNS.index(sign) + 1 for sign in chosen[index]]
        row[: len(numbers)] = numbers
    splits = {"train": rows[:num_train], "test": rows[num_train:]}
    return Source(splits, _source("character names", f"Python {sys.version_info.major}", rows))


# ----- graphs ---------------------------------------------------------------------------------------------------------

# Zachary's karate club (1977): the higher neighbours of each of the members 0 ... 33, and who left with the instructor.
CLUB = {
    0: (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31),
    1: (2, 3, 7, 13, 17, 19, 21, 30),
    2: (3, 7, 8, 9, 13, 27, 28, 32),
    3: (7, 12, 13),
    4: (6, 10),
    5: (6, 10, 16),
    6: (16,),
    8: (30, 32, 33),
    9: (33,),
    13: (33,),
    14: (32, 33),
    15: (32, 33),
    18: (32, 33),
    19: (33,),
    20: (32, 33),
    22: (32, 33),
    23: (25, 27, 29, 32, 33),
    24: (25, 27, 31),
    25: (31,),
    26: (29, 33),
    27: (33,),
    28: (31, 33),
    29: (32, 33),
    30: (32, 33),
    31: (32, 33),
    32: (33,),
}
INSTRUCTOR = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 19, 21)


@functools.cache
def club() -> tuple[np.ndarray, np.ndarray, DataSource]:
    """Who is a friend of whom [34, 34], and on which side [34]."""
    friends, sides = np.zeros((34, 34), np.float32), np.ones(34, np.int32)
    for member, others in CLUB.items():
        friends[member, list(others)] = friends[list(others), member] = 1.0
    sides[list(INSTRUCTOR)] = 0
    return friends, sides, _source("karate club", "Zachary (1977)", friends, sides)
