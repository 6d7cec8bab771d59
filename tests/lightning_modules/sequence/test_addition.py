"""Sums as tokens, a person's own text, and the language model that learns them."""

import numpy as np
import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning
from lightning_modules.sequence.addition import AdditionData, AdditionLM, addition_tokens, carries, places
from lightning_modules.sequence.language_model import LanguageModel, TokenLosses
from lightning_modules.sequence.text import TextData


def test_sums_are_written_most_significant_digit_first_and_carries_are_known():
    tokens = addition_tokens(np.array([47, 999, 120]), np.array([958, 1, 340]), 3)
    assert tokens.tolist() == [
        [0, 4, 7, 10, 9, 5, 8, 11, 1, 0, 0, 5],
        [9, 9, 9, 10, 0, 0, 1, 11, 1, 0, 0, 0],
        [1, 2, 0, 10, 3, 4, 0, 11, 0, 4, 6, 0],
    ]
    # 47 + 958: 7 + 8 carries into the 10s, 4 + 5 + 1 into the 100s, 0 + 9 + 1 into the 1000s.
    assert carries(tokens, 3).tolist() == [[True, True, True, False], [True, True, True, False], [False] * 4]
    assert places(3) == ["1000s", "100s", "10s", "1s"]
    many = AdditionData(train=10, validation=500).validation_tokens
    assert torch.equal(carries(many, 3)[:, 0], many[:, 8] == 1)
    for digits, a, message in ((3, 1000, "each from 0 to 999"), (0, 1, "digits: is 0"), (3, -1, "each from 0")):
        with pytest.raises(InputError, match=message):
            addition_tokens(np.array([a]), np.array([1]), digits)


def test_problems_are_drawn_once_and_none_is_held_out_and_learned():
    data = AdditionData(digits=2, train=9000, validation=900)
    rows = torch.cat([data.train_tokens, data.validation_tokens])
    assert len(data.validation_tokens) == 900
    assert len(rows) == len(rows.unique(dim=0)) == 9900
    assert torch.equal(
        rows,
        torch.cat(
            [(again := AdditionData(digits=2, train=9000, validation=900)).train_tokens, again.validation_tokens]
        ),
    )
    small = AdditionData(digits=1)
    assert (len(small.train_tokens), len(small.validation_tokens)) == (50, 50)
    assert len(AdditionData(digits=6, train=1000).train_tokens) == 1000
    for wrong in ({"train": 0}, {"batch_size": 0}, {"digits": 10}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            AdditionData(**wrong)


def test_losses_are_of_the_answer_tokens_alone():
    module, data = AdditionLM(), AdditionData(train=6)
    assert sum(p.numel() for p in module.parameters()) == 101_632
    tokens = data.train_tokens
    each = module.token_losses([tokens])
    assert each.shape == (6, 4)
    logits = module(tokens)
    expected = -logits[:, 7:11].log_softmax(-1).gather(2, tokens[:, 8:, None])[..., 0]
    assert torch.allclose(each, expected, atol=1e-5)
    assert torch.allclose(module.per_example_losses(tokens), each.mean(1))
    assert torch.equal(TokenLosses(module).per_example_losses(tokens), each.flatten())
    # What stands before the answer is context alone, and no answer token sees itself.
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 10
    assert torch.allclose(module.token_losses(changed)[:, :3], each[:, :3], atol=1e-5)
    assert list(dict(TokenLosses(module).named_parameters())) == [f"module.{n}" for n, _ in module.named_parameters()]


def test_it_learns_is_the_same_for_the_same_seed_and_survives_a_checkpoint(tmp_path):
    def learn():
        module = AdditionLM(digits=1, layers=1, width=32, hidden=64, lr=3e-3, warmup_steps=10)
        with quiet_lightning():
            trainer = make_trainer(150, [])
            trainer.fit(module, datamodule=AdditionData(digits=1, train=80, validation=20, batch_size=40))
        return module, trainer

    (one, trainer), (two, _) = learn(), learn()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    tokens = AdditionData(digits=1, train=80, validation=20).train_tokens
    assert float(one.per_example_losses(tokens).mean()) < 1.2
    assert float(AdditionLM(digits=1).per_example_losses(tokens).mean()) > 2
    assert trainer.callback_metrics["val_loss"] > 0
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-3)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = AdditionLM.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.token_losses(tokens), one.token_losses(tokens))


def test_wrong_settings_of_a_model_say_so():
    for make, message in (
        (lambda: AdditionLM(digits=0), "digits: is 0"),
        (lambda: AdditionLM(lr=0.0), "lr: is 0"),
        (lambda: AdditionLM(heads=3), "heads: 3 do not divide"),
        (lambda: LanguageModel(answer_start=64), "answer_start: is 64; give 1 to 63"),
        (lambda: LanguageModel().token_losses(torch.zeros(3, 1, dtype=torch.long)), r"tokens: have shape \[3, 1\]"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_ones_own_text_in_bytes_and_words(tmp_path):
    (tmp_path / "b.txt").write_text("The cat sat. The dog sat on the cat. " * 20)
    (tmp_path / "a.txt").write_text("Überall schläft eine Katze. " * 10)
    (tmp_path / "image.png").write_bytes(b"\xff\xfe")
    data = TextData(str(tmp_path), context=16)
    assert bytes(data.train_tokens[0].tolist()).decode("utf-8", "ignore").startswith("Überall schlä")
    assert data.vocabulary_size == 256
    assert data.spelled(65) == "A"
    words = TextData(str(tmp_path / "b.txt"), "word", size=6, context=8, validation=0.25)
    assert words.words == ["?", "The", "cat", "sat", ".", "dog"]
    assert [words.spelled(t) for t in words.train_tokens[0].tolist()] == [
        "The",
        "cat",
        "sat",
        ".",
        "The",
        "dog",
        "sat",
        "?",
    ]
    assert len(words.validation_tokens) / (len(words.train_tokens) + len(words.validation_tokens)) == pytest.approx(
        0.25, abs=0.02
    )
    module = LanguageModel(6, 8, layers=1, width=16, lr=1e-2, warmup_steps=5)
    before = float(module.per_example_losses(words.train_tokens).mean())
    with quiet_lightning():
        make_trainer(60, [], limit_val_batches=0, num_sanity_val_steps=0).fit(module, datamodule=words)
    assert float(module.per_example_losses(words.train_tokens).mean()) < 0.6 * before
    with quiet_lightning(), pytest.raises(InputError, match="vocabulary: is 100, the data have 256"):
        make_trainer(1, [], limit_val_batches=0).fit(LanguageModel(100, 16), datamodule=data)


def test_a_text_that_cannot_be_used_says_why(tmp_path):
    (tmp_path / "latin.txt").write_bytes("schläft".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    for make, message in (
        (lambda: TextData(), "path: is empty"),
        (lambda: TextData("x", "letter"), "unknown 'letter'; choose from byte, word"),
        (lambda: TextData("x", validation=1.0), "validation: is 1.0"),
        (lambda: TextData(str(tmp_path / "latin.txt")).train_tokens, "is not UTF-8"),
        (lambda: TextData(str(tmp_path / "none.txt")).train_tokens, "there is no text"),
        (lambda: TextData(str(tmp_path / "empty")).train_tokens, "there is no text"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(InputError, match="has 5 tokens, windows of 64 need twice as many"):
        _ = TextData(str(tmp_path / "short.txt")).train_tokens
