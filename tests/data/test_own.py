"""A user's own files: what they are read as, how they are split, and one line for all that they cannot be."""

import hashlib
import os

import numpy as np
import pytest

from metaopt.choices import parse_choice
from metaopt.data import load_dataset
from metaopt.data import own as data
from metaopt.experiment import build_family

RNG = np.random.default_rng(0)
TABLE = RNG.normal(5.0, 3.0, (50, 4))
LABELS = np.arange(50) % 3
PIXELS = RNG.integers(0, 256, (50, 4, 5, 3), np.uint8)
NUMBERS = TABLE @ np.array([1.0, -2.0, 0.5, 3.0]) + 7


@pytest.fixture(autouse=True)
def bare_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METAOPT_DATA_DIR", raising=False)
    data._found.clear()


def saved(name="mine.npz", **arrays):
    np.savez(name, **arrays)
    return name


def written(text, name="mine.csv"):
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name


def table(rows, header="a,b,label"):
    return "\n".join([header, *rows]) + "\n"


def together(dataset, part):
    return np.concatenate([getattr(split, part) for split in (dataset.train, dataset.validation, dataset.test)])


def sizes(dataset):
    return [len(split.inputs) for split in (dataset.train, dataset.validation, dataset.test)]


def in_order(rows):
    return rows[np.lexsort(np.asarray(rows).reshape(len(rows), -1).T)]


def test_a_table_is_standardised_by_its_training_split():
    dataset = load_dataset(saved(x=TABLE, y=LABELS))
    assert sizes(dataset) == [40, 5, 5] and dataset.num_inputs == 4
    np.testing.assert_allclose(dataset.train.inputs.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(dataset.train.inputs.std(0), 1, atol=1e-6)
    rows = data.split_rows(50, data.FRACTIONS, 0)[0]
    mean, deviation = TABLE[rows].mean(0), TABLE[rows].std(0)
    expected = in_order(((TABLE - mean) / deviation).astype(np.float32))
    np.testing.assert_allclose(in_order(together(dataset, "inputs")), expected, rtol=1e-5, atol=1e-6)
    assert dataset.train.inputs.dtype == np.float32 and dataset.train.targets.dtype == np.int32


def test_a_constant_feature_is_zero_and_a_tiny_spread_is_kept():
    inputs = np.column_stack([np.full(50, 0.1), 1.6e9 + np.arange(50)])
    train = load_dataset(saved(x=inputs, y=LABELS)).train.inputs
    np.testing.assert_array_equal(train[:, 0], 0)
    np.testing.assert_allclose(train[:, 1].std(), 1, rtol=1e-5)


@pytest.mark.parametrize("images", [PIXELS, PIXELS.astype(np.int64), PIXELS / 255, PIXELS[..., 0]])
def test_images_are_flattened_and_brought_to_the_unit_interval(images):
    dataset = load_dataset(saved(images=images, labels=LABELS))
    rows = data.split_rows(50, data.FRACTIONS, 0)[0]
    expected = (images[rows] if images.dtype.kind == "f" else images[rows] / 255).reshape(40, -1)
    np.testing.assert_allclose(dataset.train.inputs, expected, rtol=1e-6)
    np.testing.assert_array_equal(dataset.train.targets, LABELS[rows])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([-3, 10, 200])[LABELS], ("-3", "10", "200")),
        (np.array(["rose", "aster", "lily"])[LABELS], ("aster", "lily", "rose")),
        (np.array([b"rose", b"aster", b"lily"])[LABELS], ("aster", "lily", "rose")),
        (LABELS > 0, ("False", "True")),
        (LABELS.astype(np.uint8), ("0", "1", "2")),
    ],
)
def test_labels_of_any_kind_are_numbered_and_the_names_kept(labels, classes):
    dataset = load_dataset(saved(X=TABLE, Y=labels))
    assert dataset.classes == classes and dataset.num_classes == len(classes)
    names = labels[data.split_rows(50, data.FRACTIONS, 0)[0]].astype(str)
    assert [dataset.classes[number] for number in dataset.train.targets] == names.tolist()


def test_numbers_to_predict_are_standardised():
    dataset = load_dataset(saved(x=TABLE, y=NUMBERS), targets="numbers")
    assert dataset.train.targets.shape == (40, 1) and dataset.classes == ()
    assert abs(dataset.train.targets.mean()) < 1e-6 and abs(dataset.train.targets.std() - 1) < 1e-6
    # Linear in the inputs before, and so after.
    design = np.column_stack([dataset.train.inputs, np.ones(40)])
    assert np.linalg.lstsq(design, dataset.train.targets, rcond=None)[1] < 1e-8
    several = load_dataset(saved("several.npz", x=PIXELS, y=TABLE[:, :2]), targets="numbers")
    assert several.test.targets.shape == (5, 2) and several.train.inputs.max() <= 1


def test_files_without_targets():
    dataset = load_dataset(saved(x=TABLE), targets="none")
    assert dataset.train.targets == () and sizes(dataset) == [40, 5, 5]
    again = load_dataset(written("\n".join(f"1,2,{i}" for i in range(30))), targets="none")
    assert again.num_inputs == 3
    named = load_dataset(written(table([f"1,{i},rose" for i in range(30)]), "named.csv"), targets="none")
    assert named.num_inputs == 2 and named.train.targets == ()


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("a,b,label", "{0},{1},{2}"),
        ("y,a,b", "{2},{0},{1}"),
        ("a,Target,b", "{0},{2},{1}"),
        ("a,b,species", "{0},{1},{2}"),
        (None, "{0},{1},{2}"),
        ('a,"b, in m",label', '"{0}",{1}, "{2}"'),
        ("0,1,label", "{0},{1},{2}"),
        ("\ufeffa,b,label", "{0},{1},{2}"),
    ],
)
@pytest.mark.parametrize("names", [("rose", "aster", "lily"), ("7", "-1", "30")])
def test_csv(header, row, names):
    lines = [row.format(i, 0.5 * i * i, names[i % 3]) for i in range(50)]
    dataset = load_dataset(written("\n".join(([header] if header else []) + lines)))
    assert sizes(dataset) == [40, 5, 5] and dataset.num_inputs == 2
    expected = sorted(names, key=int if names[0] == "7" else str)
    assert dataset.classes == tuple(expected)
    rows = data.split_rows(50, data.FRACTIONS, 0)[0]
    assert [dataset.classes[number] for number in dataset.train.targets] == [names[i % 3] for i in rows]
    np.testing.assert_allclose(np.corrcoef(dataset.train.inputs[:, 0], rows)[0, 1], 1, atol=1e-6)


def test_csv_of_numbers_to_predict():
    dataset = load_dataset(written(table([f"{i},{-i % 7},{2 * i}" for i in range(50)], "a,b,c")), targets="numbers")
    np.testing.assert_allclose(dataset.test.targets[:, 0], dataset.test.inputs[:, 0], atol=1e-6)


def test_splits_by_seed_have_each_example_once():
    name = saved(x=TABLE, y=LABELS)
    first, second = load_dataset(name), load_dataset(name, split_seed=1)
    assert load_dataset(name) is first and sizes(first) == sizes(second)
    assert first.sha256 == second.sha256 == hashlib.sha256(open(name, "rb").read()).hexdigest()
    rows = [data.split_rows(50, data.FRACTIONS, seed) for seed in (0, 1)]
    assert all(np.array_equal(np.sort(np.concatenate(parts)), np.arange(50)) for parts in rows)
    assert not np.array_equal(rows[0][0], rows[1][0])
    with pytest.raises(ValueError, match="read-only"):
        first.train.inputs[0] = 0


def test_every_split_has_its_own_share():
    rows = data.split_rows(100, (0.6, 0.1, 0.3), 0)
    assert [len(part) for part in rows] == [60, 10, 30]
    rows = data.split_rows(10, (0.6, 0.4, 0.0), None)
    assert [part.tolist() for part in rows] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], []]


def test_a_changed_file_is_read_again():
    name = saved(x=TABLE, y=LABELS)
    first = load_dataset(name)
    np.savez(name, x=TABLE[:40], y=LABELS[:40])
    assert load_dataset(name).sha256 != first.sha256 and sizes(load_dataset(name)) == [32, 4, 4]


def test_splits_of_the_files_own():
    parts = {"x_train": TABLE[:30], "y_train": LABELS[:30], "test_x": TABLE[30:], "test_y": LABELS[30:]}
    dataset = load_dataset(saved(**parts))
    assert sizes(dataset) == [27, 3, 20]
    np.testing.assert_array_equal(dataset.test.targets, LABELS[30:])
    named = {"validation_inputs": TABLE[30:35], "labels_val": LABELS[30:35]}
    dataset = load_dataset(saved("three.npz", **parts, **named))
    assert sizes(dataset) == [30, 5, 20]
    np.testing.assert_array_equal(dataset.validation.targets, LABELS[30:35])
    with pytest.raises(ValueError, match="brings its own splits, so `split_seed` decides nothing"):
        load_dataset("three.npz", split_seed=1)


def test_where_files_are_looked_for(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    name = saved(x=TABLE, y=LABELS)
    here = load_dataset(name)
    assert here.source == str(tmp_path / name) and here.name == name
    os.chdir("elsewhere")
    assert load_dataset(name) is here  # found before, from another folder
    np.savez(tmp_path / "elsewhere" / name, x=PIXELS, y=LABELS)
    assert load_dataset(name).num_inputs == 60
    assert load_dataset(name, str(tmp_path)).num_inputs == load_dataset(str(tmp_path / name)).num_inputs == 4
    monkeypatch.setenv("METAOPT_DATA_DIR", str(tmp_path))
    (tmp_path / name).rename(tmp_path / "other.npz")
    assert load_dataset("other.npz").source == str(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError, match=f"'none.csv' is no file; .*Tried: {tmp_path}/elsewhere/none.csv, "):
        load_dataset("none.csv")
    with pytest.raises(FileNotFoundError, match=f"Tried: {tmp_path}/absent/{name}"):
        load_dataset(name, str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": TABLE}, r"no array 'y' \(targets\), but x; write it with numpy.savez"),
        ({"y": LABELS}, r"no array 'x' \(inputs\), but y"),
        ({}, r"no array 'x' \(inputs\), but no arrays"),
        ({"features": TABLE, "y": LABELS}, r"no array 'x' \(inputs\), but features, y"),
        ({"x": TABLE, "X": TABLE, "y": LABELS}, "two arrays of inputs"),
        ({"x": TABLE, "x_train": TABLE, "y": LABELS, "y_train": LABELS}, "arrays of a split .* and arrays of none"),
        ({"x_train": TABLE, "y_train": LABELS}, "arrays of train alone; give train and test"),
        ({"x_train": TABLE, "y_train": LABELS, "x_test": TABLE}, "no array 'y_test'"),
        (
            {"x_train": TABLE, "y_train": LABELS, "x_test": TABLE[:, :2], "y_test": LABELS},
            "splits of different shapes",
        ),
        ({"x": TABLE, "y": LABELS[:-1]}, r"50 examples, but targets of shape \(49,\)"),
        ({"x": TABLE[:, 0], "y": LABELS}, r"inputs of shape \(50,\); give a table"),
        ({"x": TABLE[:0], "y": LABELS[:0]}, r"inputs of shape \(0, 4\)"),
        ({"x": PIXELS[..., None, None], "y": LABELS}, "give a table .* or images"),
        ({"x": TABLE.astype(complex), "y": LABELS}, "inputs of type complex128; give numbers"),
        ({"x": TABLE.astype(str), "y": LABELS}, "inputs of type <U.*; give numbers"),
        ({"x": np.where(TABLE > 9, np.nan, TABLE), "y": LABELS}, r"\d+ of its inputs are nan or infinite; fill in or"),
        ({"x": np.where(TABLE > 9, 1e300, TABLE), "y": LABELS}, "nan or infinite"),
        ({"x": PIXELS.astype(int) + 1, "y": LABELS}, r"pixels outside 0 \.\.\. 255"),
        ({"x": TABLE, "y": LABELS * 0}, r"a single class \(0\); a classifier needs two or more"),
        ({"x": TABLE, "y": np.arange(50)}, "a class of its own for each example"),
        ({"x": TABLE, "y": LABELS / 2}, r"labels of type float64, .*y.astype\(int\).* with regression_network"),
        ({"x": TABLE, "y": np.eye(3)[LABELS].astype(int)}, r"labels of shape \(50, 3\); give one an example"),
        ({"x": TABLE, "y": np.array([{}] * 50)}, "array 'y' cannot be read; Python objects are never unpickled"),
        ({"x": np.array([{}] * 50), "y": LABELS}, "array 'x' cannot be read"),
    ],
)
def test_refuses_arrays(arrays, message):
    name = saved(**arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(name)
    assert "mine.npz" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": TABLE[:2], "y": NUMBERS[:2]}, "mine.npz: 2 examples are too few for the splits; give 3 or more"),
        ({"x": TABLE, "y": NUMBERS * 0}, "targets that are all the same"),
        ({"x": TABLE, "y": np.array(["a", "b"])[LABELS % 2]}, "targets of type <U1 .* predict classes with classifier"),
        ({"x": TABLE, "y": NUMBERS.reshape(50, 1, 1)}, r"shape \(50, 1, 1\)"),
        ({"x": TABLE, "y": np.where(LABELS > 0, NUMBERS, np.inf)}, "17 of its targets are nan or infinite"),
    ],
)
def test_refuses_what_cannot_be_predicted_as_numbers(arrays, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(saved(**arrays), targets="numbers")


GOOD_ROWS = [f"{i},{i * i},{'ab'[i % 2]}" for i in range(20)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.csv is empty"),
        ("\n\n", "0 column|no examples"),
        ("a,b,label\n", "holds no examples"),
        ("a\n1\n2\n", "has 1 column, and needs inputs and a target"),
        ("a;b;label\n1;2;x\n", "has 1 column, and needs inputs and a target between commas"),
        (table([*GOOD_ROWS, "1,2"]), "number of columns changed from 3 to 2"),
        (table([*GOOD_ROWS, "1,two,a"]), "could not convert string 'two'.*words may be labels alone"),
        (table([*GOOD_ROWS, "1,,a"]), "could not convert string ''"),
        (table([*GOOD_ROWS, "1,nan,a"]), "1 of its inputs are nan"),
        (table([*GOOD_ROWS, "1,2,"]), "an example has no label"),
        (table([f"{i},2,{i / 3}" for i in range(20)]), "labels of type float64"),
        (table(GOOD_ROWS, ",b,label"), r"a column has no name; .*index=False"),
        (table(GOOD_ROWS, "y,b,label"), "2 columns that could hold the targets"),
        (table([f"{i},2,a" for i in range(20)]), r"a single class \(a\)"),
        ("\x00\x01\x02", "not|column"),
    ],
)
def test_refuses_tables(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(written(text))
    assert "mine.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_files_of_other_kinds(tmp_path):
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"table.parquet is neither .npz nor .csv; .*savez\('table'"):
        load_dataset("table.parquet")
    for content in (b"nonsense", b"PK\3\4 cut off", b"\x80\x04]"):
        (tmp_path / "spoilt.npz").write_bytes(content)
        with pytest.raises(ValueError, match="spoilt.npz is not an .npz file"):
            load_dataset("spoilt.npz")
    np.save(tmp_path / "single.npy", TABLE)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(ValueError, match="a single array without a name"):
        load_dataset("single.npz")
    (tmp_path / "latin.csv").write_bytes("a,b,größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.csv is not a text"):
        load_dataset("latin.csv")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileNotFoundError, match="is no file"):
        load_dataset("folder.npz")
    np.savez(tmp_path / "a,b.npz", x=np.eye(9), y=np.arange(9) // 3)
    assert build_family(parse_choice('classifier:data="a,b.npz",batch_size=2')).name.startswith(
        'classifier:data="a,b.npz"'
    )


def test_named_sets_hold_what_they_hold():
    assert load_dataset("digits", targets="none") is load_dataset("digits")
    diabetes = load_dataset("diabetes", targets="numbers")
    assert diabetes.train.inputs.shape == (310, 10) and diabetes.test.targets.shape == (66, 1)
    assert abs(diabetes.train.targets.std() - 1) < 1e-6
    with pytest.raises(ValueError, match="'diabetes' holds numbers to predict, and not classes"):
        load_dataset("diabetes")
    with pytest.raises(ValueError, match="'digits' holds classes to predict, and not numbers"):
        load_dataset("digits", targets="numbers")
    with pytest.raises(ValueError, match="'digits' has a split of its own; leave `split_seed` out"):
        load_dataset("digits", split_seed=3)
    with pytest.raises(ValueError, match="the seed of a split is -1"):
        load_dataset(saved(x=TABLE, y=LABELS), split_seed=-1)


def test_old_names_of_the_arrays_say_the_new_ones():
    digits = load_dataset("digits")
    assert digits.train_images is digits.train.inputs and digits.test_labels is digits.test.targets
    with pytest.raises(AttributeError, match="no `train_pixels`"):
        digits.train_pixels  # noqa: B018
    with pytest.raises(AttributeError, match="has no `pixels`"):
        load_dataset("digits").pixels  # noqa: B018
