"""Labelled examples: fixed built-in splits, faithful files, nothing unpickled, and one line for whatever is wrong."""

import io
import os
import pickle
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.data.archives import read_cifar10
from lightning_modules.data.catalog import BUILT_IN as DATASETS
from lightning_modules.data.catalog import load_dataset
from lightning_modules.data.class_folders import crop_image
from lightning_modules.data.digits import load_digits
from lightning_modules.data.examples import BUILT_IN, as_tensor, load_examples
from lightning_modules.data.folder import load_folder
from lightning_modules.data.tables import write_table
from lightning_modules.errors import InputError


def fails(*words: str):
    """Expect one line that holds all the words."""

    def one_line_with_all(error: BaseException) -> bool:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
        assert "\n" not in str(error)
        return True

    return pytest.raises(InputError, check=one_line_with_all)


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Built in


def test_mnist_is_the_digits_in_one_fixed_order_split_4000_to_1000():
    images, labels = load_digits()
    order = np.random.default_rng(0).permutation(5000)
    train, test = load_examples("MNIST", "train"), load_examples("MNIST")
    assert (train.inputs.shape, test.inputs.shape) == ((4000, 1, 28, 28), (1000, 1, 28, 28))
    assert (train.inputs.dtype, train.labels.dtype, train.indices.dtype) == (np.uint8, np.int64, np.int64)
    np.testing.assert_array_equal(np.concatenate([train.inputs, test.inputs])[:, 0], images[order])
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels[order])
    np.testing.assert_array_equal(load_examples("MNIST", "all").labels, labels[order])
    assert (test.identity, train.identity, test.input_range) == ("MNIST-test", "MNIST-train", (0.0, 1.0))
    assert test.classes == tuple("0123456789")


def test_mnist17_has_the_ones_and_sevens():
    images, labels = load_digits()
    parts = [load_examples("MNIST17", part) for part in ("train", "test")]
    assert [len(part) for part in parts] == [800, 200]
    assert parts[0].classes == ("1", "7")
    pooled = np.concatenate([part.inputs[:, 0] for part in parts])
    truth = np.concatenate([part.labels for part in parts])
    for label, digit in enumerate((1, 7)):
        expected = {image.tobytes() for image in images[labels == digit]}
        assert {image.tobytes() for image in pooled[truth == label]} == expected


def test_scikit_learns_data_equal_what_it_loads():
    from sklearn.datasets import load_breast_cancer
    from sklearn.datasets import load_digits as small_digits

    pixels, labels = small_digits(return_X_y=True)
    found = load_examples("Digits", "all")
    order = np.random.default_rng(0).permutation(len(labels))
    np.testing.assert_array_equal(found.inputs.reshape(-1, 64) * 16, pixels[order])
    np.testing.assert_array_equal(found.labels, labels[order])
    assert found.inputs.max() == 1
    assert [len(load_examples("Digits", part)) for part in ("train", "test")] == [1437, 360]

    table = load_breast_cancer()
    train, both = load_examples("BreastCancer", "train"), load_examples("BreastCancer", "all")
    order = np.random.default_rng(0).permutation(569)
    np.testing.assert_allclose(train.inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.inputs.std(axis=0), 1, atol=1e-6)
    fitted = table.data[order[:455]]
    expected = (table.data[order] - fitted.mean(axis=0)) / fitted.std(axis=0)
    np.testing.assert_allclose(both.inputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(both.labels, table.target[order])
    assert both.classes == tuple(table.target_names)
    assert both.input_range is None


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_of_the_catalog_are_pooled_in_order(name):
    dataset, found = load_dataset(name), load_examples(name, every=7)
    pooled = np.concatenate([environment.inputs for environment in dataset.environments])
    np.testing.assert_array_equal(found.inputs, pooled[::7])
    np.testing.assert_array_equal(found.labels, np.concatenate([e.labels for e in dataset.environments])[::7])
    assert found.classes == dataset.classes
    assert found.identity == f"{dataset.identity}-all"
    with fails(name, "no part 'train'"):
        load_examples(name, "train")


def test_every_and_limit_take_a_subset_and_keep_the_identity():
    whole, some = load_examples("MNIST"), load_examples("MNIST", every=20, limit=30)
    np.testing.assert_array_equal(some.indices, np.arange(0, 600, 20))
    np.testing.assert_array_equal(some.inputs, whole.inputs[some.indices])
    np.testing.assert_array_equal(some.labels, whole.labels[some.indices])
    assert some.identity == whole.identity
    assert len(load_examples("MNIST", limit=10**6)) == 1000


def test_tensors_are_float32_in_the_units_a_classifier_sees():
    pixels = rng().integers(0, 256, (5, 3, 2, 2), dtype=np.uint8)
    pixels.flags.writeable = False
    values = as_tensor(pixels, np.array([4, 0]))
    assert values.dtype == torch.float32
    np.testing.assert_allclose(values.numpy(), pixels[[4, 0]] / 255.0, rtol=1e-6)
    floats = rng().random((5, 3), dtype=np.float32)
    copied = as_tensor(floats, slice(1, 3))
    np.testing.assert_array_equal(copied.numpy(), floats[1:3])
    copied += 1
    assert floats.max() < 1


def test_loading_imports_neither_torch_nor_scikit_learn():
    code = (
        "import sys; from lightning_modules.data.examples import load_examples as load; load('MNIST'); load('Digits');"
        "load('BreastCancer'); print(sorted({'torch', 'ray', 'mlxtend', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Options and names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, ("every: 0",)),
        ({"limit": 0}, ("limit: 0",)),
        ({"part": "dev"}, ("part: 'dev'", "train, test, all")),
        ({"image_size": 0}, ("image_size: 0",)),
        ({"num_classes": 1}, ("num_classes: 1",)),
        ({"num_classes": 7}, ("MNIST", "10 classes", "num_classes is 7")),
        ({"input_range": (1.0, 0.0)}, ("input_range: 1 to 0",)),
        ({"input_range": (0.0, float("inf"))}, ("input_range: 0 to inf",)),
        ({"input_range": (0.0, 0.5)}, ("MNIST", "row 0", "0 to 0.5", "input_range")),
    ],
)
def test_wrong_options_are_named(options, words):
    with fails(*words):
        load_examples("MNIST", **options)


def test_unknown_names_get_the_nearest():
    with fails("unknown data 'mnist'", "did you mean 'MNIST'"):
        load_examples("mnist")
    with fails("did you mean 'ColoredMNIST'"):
        load_examples("ColorMNIST")
    with fails("unknown data 'no/such.npz'", *BUILT_IN, "nothing lies at that path"):
        load_examples("no/such.npz")
    with fails("unknown data ''"):
        load_examples("")


# npz files


def npz(folder, name="mine.npz", **arrays):
    np.savez(folder / name, **arrays)
    return str(folder / name)


def test_npz_files_load_and_have_an_identity_of_their_content(tmp_path):
    inputs, labels = rng().random((6, 3, 4, 4)), np.array([0, 1, 2, 3, 1, 0])
    path = npz(tmp_path, inputs=inputs, labels=labels)
    found = load_examples(path)
    np.testing.assert_array_equal(found.inputs, inputs.astype(np.float32))
    np.testing.assert_array_equal(found.labels, labels)
    assert found.inputs.dtype == np.float32
    assert (found.classes, found.input_range) == (("0", "1", "2", "3"), (0.0, 1.0))
    assert load_examples(path, num_classes=6).classes == tuple("012345")
    assert found.identity.startswith("mine-all@")
    assert len(found.identity) == len("mine-all@") + 8
    assert load_examples(path, "all").identity == found.identity
    (tmp_path / "elsewhere").mkdir()
    assert load_examples(npz(tmp_path / "elsewhere", inputs=inputs, labels=labels)).identity == found.identity
    inputs[5, 2, 3, 3] = 0.5
    assert load_examples(npz(tmp_path, inputs=inputs, labels=labels)).identity != found.identity
    labels[5] = 2
    changed = load_examples(npz(tmp_path, "mine.npz", inputs=inputs, labels=labels))
    assert len({found.identity, changed.identity}) == 2
    with fails(path, "no part 'train'"):
        load_examples(path, "train")


def test_npz_files_may_name_their_classes_and_hold_pixels_or_features(tmp_path):
    pixels = rng().integers(0, 256, (3, 1, 2, 2), dtype=np.uint8)
    path = npz(tmp_path, inputs=pixels, labels=[0, 1, 0], classes=np.array(["cat", "dog"]))
    found = load_examples(path)
    assert (found.classes, found.input_range, found.inputs.dtype) == (("cat", "dog"), (0.0, 1.0), np.uint8)
    with fails(path, "2 classes", "num_classes is 3"):
        load_examples(path, num_classes=3)
    features = npz(tmp_path, "flat.npz", inputs=1000 * rng().standard_normal((4, 5)), labels=[0, 1, 0, 1])
    assert load_examples(features).input_range is None
    assert load_examples(features, input_range=(-9000, 9000)).input_range == (-9000, 9000)


IMAGES = np.full((4, 1, 2, 2), 0.5, np.float32)


def with_value(value, row=2):
    images = IMAGES.astype(np.float64)
    images[row, 0, 1, 0] = value
    return images


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"inputs": IMAGES}, {}, ("no array 'labels'", "'inputs'")),
        ({"labels": [0]}, {}, ("no array 'inputs'",)),
        ({"inputs": IMAGES[:0], "labels": np.zeros(0, int)}, {}, ("no rows",)),
        ({"inputs": IMAGES, "labels": [0, 1]}, {}, ("4 inputs but 2 labels",)),
        ({"inputs": IMAGES[:, 0, 0, 0], "labels": [0, 1, 0, 1]}, {}, ("shape [4]",)),
        ({"inputs": IMAGES, "labels": [0.0, 1, 0, 1]}, {}, ("labels are float64", "integers")),
        ({"inputs": IMAGES, "labels": [[0, 1, 0, 1]]}, {}, ("labels are int64 [1, 4]",)),
        ({"inputs": IMAGES.astype(int), "labels": [0, 1, 0, 1]}, {}, ("inputs are int64", "uint8")),
        ({"inputs": IMAGES, "labels": [0, 1, -3, 1]}, {}, ("label -3 of row 2 is negative",)),
        ({"inputs": IMAGES, "labels": [0, 1, 0, 5]}, {"num_classes": 5}, ("label 5 of row 3", "classes, 5")),
        ({"inputs": IMAGES, "labels": [0, 2, 0, 1], "classes": ["a", "b"]}, {}, ("label 2 of row 1", "classes, 2")),
        ({"inputs": IMAGES, "labels": [0, 1, 0, 1], "classes": [["a", "b"]]}, {}, ("classes are <U1 [1, 2]",)),
        ({"inputs": with_value(np.nan), "labels": [0, 1, 0, 1]}, {}, ("1 rows", "NaN", "first row 2")),
        ({"inputs": with_value(np.nan), "labels": [0, 1, 0, 1]}, {"every": 2}, ("NaN", "first row 2")),
        ({"inputs": with_value(-np.inf), "labels": [0, 1, 0, 1]}, {}, ("infinite", "first row 2")),
        ({"inputs": with_value(1e300), "labels": [0, 1, 0, 1]}, {}, ("infinite", "first row 2")),
        ({"inputs": with_value(1.5), "labels": [0, 1, 0, 1]}, {}, ("1.5 in row 2", "0 to 1")),
        ({"inputs": with_value(-0.25), "labels": [0, 1, 0, 1]}, {}, ("-0.25 in row 2",)),
        ({"inputs": with_value(1.5), "labels": [0, 1, 0, 1]}, {"every": 2}, ("1.5 in row 2",)),
        ({"inputs": IMAGES, "labels": [0, 1, 0, 1]}, {"input_range": (-1, 0.25)}, ("0.5 in row 0", "-1 to 0.25")),
        ({"inputs": np.array([[1, 2], None], object), "labels": [0, 1]}, {}, ("inputs hold Python objects",)),
    ],
)
def test_bad_npz_files_are_told_in_one_line(tmp_path, arrays, options, words):
    path = npz(tmp_path, **{name: np.asarray(array) for name, array in arrays.items()})
    with fails(path, *words):
        load_examples(path, **options)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_npz_files_are_never_unpickled(tmp_path):
    marker = tmp_path / "ran"
    path = npz(tmp_path, inputs=np.array([[Touch(marker)]], object), labels=[0])
    with fails(path, "inputs hold Python objects"):
        load_examples(path)
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Touch(marker)))
    with fails("bare.npz", "cannot be read as an npz file"):
        load_examples(str(tmp_path / "bare.npz"))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Touch(marker)))
    assert marker.exists()


# Feature tables


def test_tables_of_one_environment_or_none_keep_the_files_order(tmp_path):
    features = rng().standard_normal((6, 4)).astype(np.float32)
    labels = np.array(["b", "a", "b", "c", "a", "b"])
    path = tmp_path / "one.parquet"
    write_table(path, features, labels, ["only"] * 6)
    found = load_examples(str(path))
    np.testing.assert_array_equal(found.inputs, features)
    np.testing.assert_array_equal(found.labels, [1, 0, 1, 2, 0, 1])
    assert (found.classes, found.input_range) == (("a", "b", "c"), None)
    with fails(str(path), "no part 'train'", "'all'"):
        load_examples(str(path), "train")
    without = npz(tmp_path, "one.npz", features=features, label=labels)
    assert load_examples(without).identity == found.identity
    with fails(str(path), "label", "3 classes", "num_classes is 5"):
        load_examples(str(path), num_classes=5)
    with fails(str(path), "3 classes", "num_classes is 2"):
        load_examples(str(path), num_classes=2)


def test_a_tables_own_split_is_honoured(tmp_path):
    features, labels = rng().standard_normal((6, 2)).astype(np.float32), np.array([0, 1, 2, 0, 1, 1])
    split = np.array(["out", "in", "in", "out", "in", "in"])
    path = str(tmp_path / "t.parquet")
    write_table(path, features, labels, ["x", "y"] * 3, split)
    test, train, both = (load_examples(path, part) for part in ("test", "train", "all"))
    np.testing.assert_array_equal(test.inputs, features[[0, 3]])
    np.testing.assert_array_equal(train.labels, labels[[1, 2, 4, 5]])
    np.testing.assert_array_equal(both.labels, labels)
    assert test.classes == train.classes == ("0", "1", "2")  # though part test has class 0 only
    assert len({test.identity, train.identity, both.identity}) == 3
    write_table(path, features, labels, ["x", "y"] * 3, ["in"] * 6)
    with fails(path, "part 'test' has no rows"):
        load_examples(path)


def test_integer_labels_of_a_table_keep_their_numbers_where_a_class_is_missing(tmp_path):
    path = str(tmp_path / "t.parquet")
    write_table(path, np.eye(4, dtype=np.float32), np.array([0, 1, 4, 2]), ["x"] * 4)
    np.testing.assert_array_equal(load_examples(path, num_classes=10).labels, [0, 1, 4, 2])
    np.testing.assert_array_equal(load_examples(path, num_classes=4).labels, [0, 1, 3, 2])
    write_table(path, np.eye(4, dtype=np.float32), np.array([0, 1, 14, 2]), ["x"] * 4)
    with fails(path, "label 14 of row 2", "classes, 10"):
        load_examples(path, num_classes=10)


# CIFAR-10


class Python2Pickler(pickle._Pickler):
    """Writes bytes as the strings that Python 2 had, as in the files of CIFAR-10."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        self.write(b"T" + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch[bytes] = save_string


def python2_pickle(value) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, 2).dump(value)
    return out.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar(count, seed):
    return rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8), rng(seed).integers(0, 10, count)


NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = {f"data_batch_{i}": cifar(2, i) for i in range(1, 6)} | {"test_batch": cifar(4, 6)}


def write_python_version(folder, dump=python2_pickle):
    folder.mkdir()
    for name, (pixels, labels) in BATCHES.items():
        batch = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"one", b"filenames": [b"x.png"]}
        (folder / name).write_bytes(
            dump(batch if dump is python2_pickle else {k.decode(): v for k, v in batch.items()})
        )
    (folder / "batches.meta").write_bytes(dump({"label_names": NAMES, "num_vis": 3072}))
    return folder


@pytest.fixture
def python_version(tmp_path):
    return write_python_version(tmp_path / "cifar-10-batches-py")


@pytest.mark.parametrize("dump", [python2_pickle, lambda v: pickle.dumps(v, 2), lambda v: pickle.dumps(v, 4)])
def test_cifar10_in_python_and_binary_version_are_the_same(tmp_path, dump):
    folder = write_python_version(tmp_path / "cifar-10-batches-py", dump)
    binary = tmp_path / "binary"
    binary.mkdir()
    for name, (pixels, labels) in BATCHES.items():
        rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (binary / f"{name}.bin").write_bytes(rows.tobytes())
    (binary / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    for part in ("train", "test", "all"):
        found, other = load_examples(str(folder), part), load_examples(str(binary), part)
        batches = {"test": ["test_batch"], "train": list(BATCHES)[:5], "all": list(BATCHES)}[part]
        expected = np.concatenate([BATCHES[name][0] for name in batches]).reshape(-1, 3, 32, 32)
        for one in (found, other):
            np.testing.assert_array_equal(one.inputs, expected)
            np.testing.assert_array_equal(one.labels, np.concatenate([BATCHES[name][1] for name in batches]))
            assert one.classes == tuple(NAMES)
        assert found.identity == other.identity
        assert found.identity.startswith(f"CIFAR10-{part}@")
    assert load_examples(str(tmp_path)).identity == load_examples(str(folder)).identity
    (folder / "batches.meta").unlink()
    assert load_examples(str(folder)).classes == tuple("0123456789")
    assert load_examples(str(folder), input_range=(0.0, 1.0)).input_range == (0.0, 1.0)


def poisons(marker):
    """Pickles that run code, each by another way."""
    yield pickle.dumps(Touch(marker), 2)
    yield pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [0], "more": Touch(marker)}, 4)
    yield b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR."  # a global and REDUCE, protocol 0
    yield b"(S'" + str(marker).encode() + b"'\nios\nmkdir\n."  # INST
    yield b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c" + bytes([len(str(marker))]) + str(marker).encode() + b"\x85R."


def test_a_malicious_cifar10_pickle_is_refused_and_does_not_run(tmp_path, python_version):
    marker = tmp_path / "ran"
    for poison in poisons(marker):
        (python_version / "test_batch").write_bytes(poison)
        with fails(str(python_version / "test_batch"), "mkdir", "may run code"):
            load_examples(str(python_version))
        assert not marker.exists()
        pickle.loads(poison)  # it would have run
        marker.rmdir()
    (python_version / "test_batch").write_bytes(python2_pickle({"data": BATCHES["test_batch"][0], "labels": [1] * 4}))
    (python_version / "batches.meta").write_bytes(pickle.dumps(Touch(marker), 2))
    with fails("batches.meta", "may run code"):
        load_examples(str(python_version))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ([1, 2], ("holds no 'data'",)),
        ({"data": np.zeros((2, 3072), np.uint8)}, ("holds no 'data'", "'labels'")),
        ({"data": np.zeros((2, 100), np.uint8), "labels": [0, 1]}, ("holds no 'data' [n, 3072]",)),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, ("2 images but 1 labels",)),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, ("label 10 of row 1",)),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}, ("not of uint8",)),
        ({"data": np.array([[[]]], object), "labels": [0]}, ("not of uint8",)),
    ],
)
def test_other_pickles_are_not_taken_for_cifar10(python_version, batch, words):
    (python_version / "test_batch").write_bytes(pickle.dumps(batch, 2))
    with fails(str(python_version / "test_batch"), *words):
        load_examples(str(python_version))


def test_damaged_cifar10_files_are_told_in_one_line(tmp_path, python_version):
    good = (python_version / "test_batch").read_bytes()
    generator = rng()
    for length in [0, 1, 5, 60, 200, *generator.integers(200, len(good), 5)]:
        (python_version / "test_batch").write_bytes(good[:length])
        with fails(str(python_version / "test_batch")):
            load_examples(str(python_version))
    told = []
    for _ in range(300):  # whatever the bytes, there is either an error in one line or an array of pixels
        head = bytearray(good[:300])
        head[generator.integers(len(head))] = generator.integers(256)
        (python_version / "test_batch").write_bytes(bytes(head) + good[300:])
        try:
            read_cifar10(python_version, "test")
        except InputError as error:
            told.append(str(error))
    assert len(told) > 50
    assert not any("\n" in line for line in told)
    (python_version / "data_batch_3").unlink()
    with fails("data_batch_3", "No such file"):
        load_examples(str(python_version), "train")
    short = tmp_path / "binary"
    short.mkdir()
    (short / "test_batch.bin").write_bytes(bytes(3072))
    with fails("test_batch.bin", "3072 bytes", "multiple of 3073"):
        load_examples(str(short))
    (short / "test_batch.bin").write_bytes(bytes([77]) + bytes(3072))
    with fails("test_batch.bin", "label 77 of row 0"):
        load_examples(str(short))


# Folders of images


def image(file, size=(12, 9), seed=0, mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(file)


def reference_crop(file, size):
    """Resize the shorter side, then cut out the centre, as torchvision's transforms are documented."""
    opened = Image.open(file).convert("RGB")
    width, height = opened.size
    short = round(size * 256 / 224)
    resized = opened.resize([side * short // min(width, height) for side in (width, height)], Image.Resampling.BILINEAR)
    left, top = round((resized.width - size) / 2.0), round((resized.height - size) / 2.0)
    return np.asarray(resized)[top : top + size, left : left + size].transpose(2, 0, 1)


@pytest.fixture
def photographs(tmp_path):
    root = tmp_path / "photographs"
    for i, name in enumerate(["wolf/b.png", "wolf/a.JPEG", "ant/2.jpg", "ant/10.png", "ant/1.png"]):
        image(root / name, (40 + 9 * i, 60 - 7 * i), i)
    (root / "ant" / "notes.txt").write_text("no image")
    (root / "bee").mkdir()
    return root


def test_class_folders_are_sorted_resized_and_cropped(photographs):
    found = load_examples(str(photographs), image_size=28)
    files = ["ant/1.png", "ant/10.png", "ant/2.jpg", "wolf/a.JPEG", "wolf/b.png"]
    assert found.classes == ("ant", "bee", "wolf")
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 2, 2])
    np.testing.assert_array_equal(found.inputs, [reference_crop(photographs / file, 28) for file in files])
    assert (found.inputs.dtype, found.input_range) == (np.uint8, (0.0, 1.0))
    assert load_examples(str(photographs), limit=1).inputs.shape == (1, 3, 224, 224)
    with fails(str(photographs), "3 classes", "num_classes is 10"):
        load_examples(str(photographs), num_classes=10)


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (333, 500), (1, 300), (257, 256)])
def test_crops_have_their_size_whatever_the_images(tmp_path, size):
    image(tmp_path / "x.png", size)
    np.testing.assert_array_equal(crop_image(tmp_path / "x.png", 224), reference_crop(tmp_path / "x.png", 224))
    assert crop_image(tmp_path / "x.png", 224).shape == (3, 224, 224)
    if size == (256, 256):
        expected = np.asarray(Image.open(tmp_path / "x.png"))[16:240, 16:240].transpose(2, 0, 1)
        np.testing.assert_array_equal(crop_image(tmp_path / "x.png", 224), expected)


def test_only_the_chosen_images_are_decoded(photographs):
    (photographs / "ant" / "10.png").write_bytes(b"no image")
    some = load_examples(str(photographs), every=2, image_size=16)
    np.testing.assert_array_equal(some.indices, [0, 2, 4])
    np.testing.assert_array_equal(some.labels, [0, 0, 2])
    with fails(str(photographs / "ant" / "10.png"), "not an image"):
        load_examples(str(photographs))
    assert len(load_examples(str(photographs), limit=1, image_size=16)) == 1


def test_the_identity_of_a_class_folder_moves_with_it(tmp_path, photographs):
    first = load_examples(str(photographs), image_size=16).identity
    moved = tmp_path / "elsewhere" / "photographs"
    shutil.copytree(photographs, moved)
    assert load_examples(str(moved), image_size=16, limit=2).identity == first
    assert load_examples(str(moved), image_size=17).identity != first
    image(moved / "wolf" / "b.png", (30, 30), 9)
    assert load_examples(str(moved), image_size=16).identity != first
    assert first.startswith("photographs-all@")


def test_a_folder_divided_into_train_and_val_gives_its_parts(tmp_path):
    root = tmp_path / "divided"
    for i, name in enumerate(["train/a/1.png", "train/b/1.png", "train/b/2.png", "val/a/1.png", "val/b/1.png"]):
        image(root / name, seed=i)
    sizes = {part: len(load_examples(str(root), part, image_size=8)) for part in ("train", "test", "all")}
    assert sizes == {"train": 3, "test": 2, "all": 5}
    val = load_examples(str(root), image_size=8)
    np.testing.assert_array_equal(val.inputs[1], reference_crop(root / "val/b/1.png", 8))
    assert val.identity.startswith("divided-test@")
    image(root / "val" / "c" / "1.png")
    with fails("val", "class 'c'"):
        load_examples(str(root), "all", image_size=8)
    shutil.rmtree(root / "train")
    with fails(str(root), "no part 'train'", "val"):
        load_examples(str(root), "train")


def test_a_folder_of_environments_is_told_apart_and_pooled(tmp_path):
    for i, name in enumerate(["x/a/1.png", "x/b/1.png", "y/a/1.png", "y/b/1.png", "y/b/2.png"]):
        image(tmp_path / "root" / name, seed=i)
    found = load_examples(str(tmp_path / "root"), image_size=8)
    dataset = load_folder(tmp_path / "root", 8)
    np.testing.assert_array_equal(found.inputs, np.concatenate([e.inputs for e in dataset.environments]))
    np.testing.assert_array_equal(found.labels, [0, 1, 0, 1, 1])
    assert load_examples(str(tmp_path / "root"), limit=1).inputs.shape == (1, 3, 64, 64)


def test_folders_without_a_known_layout_are_told_in_one_line(tmp_path, photographs):
    (tmp_path / "empty").mkdir()
    with fails("empty", "holds neither images"):
        load_examples(str(tmp_path / "empty"))
    image(photographs / "bee" / "deeper" / "1.png")
    with fails("ant holds images but bee holds folders"):
        load_examples(str(photographs))
