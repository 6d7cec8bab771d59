"""Images cut into patches, put among tokens, and answered about."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning
from lightning_modules.sequence.decoders import make_decoder
from lightning_modules.sequence.multimodal import EQUALS, PATCH, PLUS, DigitSums, MultimodalModel, batch_of
from lightning_modules.sequence.patches import PatchDecoder, interleave, patches_of
from lightning_modules.sequence.training import fit
from lightning_modules.sequence.transformer import TransformerConfig


def decoder(**options):
    config = TransformerConfig(**{"vocabulary": 12, "context": 20, "width": 16, "init_std": 0.4} | options)
    return PatchDecoder(make_decoder(config), 4, 11, torch.Generator().manual_seed(0)).double().eval()


def drawn(count, size=4, seed=0):
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_patches_are_squares_row_by_row():
    image = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    found = patches_of(image, 2)
    assert found.shape == (6, 12)
    for number in range(6):
        row, column = divmod(number, 3)
        expected = [image[2 * row + i, 2 * column + j, c] for i in range(2) for j in range(2) for c in range(3)]
        assert found[number].tolist() == expected
    assert np.array_equal(patches_of(image[..., 0], 2), patches_of(image[..., :1], 2))


def test_text_and_images_keep_their_order():
    first, second = np.full((2, 4), 0.5), np.zeros((2, 2))
    tokens, patches = interleave([[1, 2], first, np.array([3]), second, []], placeholder=11, size=2)
    assert tokens.tolist() == [1, 2, 11, 11, 3, 11]
    assert patches.tolist() == [[0.5] * 4, [0.5] * 4, [0.0] * 4]
    alone, none = interleave([[4, 5]], placeholder=11, size=2)
    assert alone.tolist() == [4, 5]
    assert len(none) == 0


def test_a_patch_takes_the_embedding_of_its_placeholder_and_nothing_else_changes():
    model = decoder()
    tokens = torch.tensor([[3, 11, 11, 5], [11, 2, 1, 11]])
    patches = drawn(4)
    found = model.embedded(tokens, patches)
    plain, mapped = model.decoder.embedding(tokens), model.projection(patches)
    places = [(0, 1), (0, 2), (1, 0), (1, 3)]
    for number, place in enumerate(places):
        assert torch.equal(found[place], mapped[number])
    for place in ((0, 0), (0, 3), (1, 1), (1, 2)):
        assert torch.equal(found[place], plain[place])
    found.sum().backward()
    assert torch.equal(model.decoder.embedding.weight.grad[11], torch.zeros(16, dtype=torch.float64))
    assert torch.allclose(model.projection.bias.grad, torch.full((16,), 4.0, dtype=torch.float64))


def test_text_sees_the_images_before_it_and_none_behind_it():
    model = decoder()
    tokens, patches = torch.tensor([[1, 11, 2, 3, 11, 4]]), drawn(2)
    changed = patches.clone()
    changed[1] += 1
    before, after = model(tokens, patches), model(tokens, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-12)
    assert ((before - after)[:, 4:].abs().amax(-1) > 1e-4).all()
    changed = patches.clone()
    changed[0] += 1
    assert ((before - model(tokens, changed))[:, 1:].abs().amax(-1) > 1e-4).all()


def test_writing_with_a_cache_is_what_the_whole_sequence_says():
    model = decoder(positions="rotary", taps=2)
    tokens = torch.tensor([[1, 11, 2], [5, 7, 11]])
    patches = drawn(2)
    written = model.write(tokens, patches, 6)
    whole = tokens
    for _ in range(6):
        logits = model(whole, patches)[:, -1]
        logits[:, 11] = -math.inf
        whole = torch.cat([whole, logits.argmax(-1)[:, None]], 1)
    assert torch.equal(written, whole[:, 3:])
    assert model.write(tokens, patches, 0).shape == (2, 0)


def test_batches_hold_questions_of_any_number_of_images():
    questions = [
        interleave([[1], np.full((2, 2), 0.1), np.full((2, 2), 0.2)], 11, 2),
        interleave([[2, 3]], 11, 2),
        interleave([np.full((2, 4), 0.3)], 11, 2),
    ]
    batch = batch_of(questions, [[4], [5, 6], [7]], padding=0)
    assert batch.tokens.tolist() == [[1, 11, 11, 4], [2, 3, 5, 6], [11, 11, 7, 0]]
    assert batch.scored.tolist() == [[False] * 3 + [True], [False, False, True, True], [False, False, True, False]]
    assert batch.counts.tolist() == [2, 0, 2]
    assert np.allclose(batch.flat_patches()[:, 0], [0.1, 0.2, 0.3, 0.3])
    module = MultimodalModel(12, 8, 4, 11, width=16, init_std=0.3)
    logits, targets = module.logits(batch)
    assert targets.tolist() == [4, 5, 6, 7]
    for row, (question, answer) in enumerate(zip(questions, [[4], [5, 6], [7]], strict=True)):
        alone, _ = module.logits(batch_of([question], [answer]))
        start = (0, 1, 3)[row]
        torch.testing.assert_close(alone, logits[start : start + len(answer)], rtol=1e-4, atol=1e-5)


def test_digit_questions_show_the_images_whose_labels_they_sum():
    from sklearn.datasets import load_digits

    data = DigitSums(train=300, validation=200, seed=3)
    images, labels = load_digits(return_X_y=True)
    known = {
        patches_of(image.reshape(8, 8) / 16, 4).tobytes(): int(label)
        for image, label in zip(images, labels, strict=True)
    }
    seen = []
    for part in (data.train, data.validation):
        shown = set()
        for tokens, patches in zip(part.tokens.tolist(), part.patches.numpy(), strict=True):
            first, second = patches[:4].tobytes(), patches[4:].tobytes()
            assert tokens == [*[PATCH] * 4, PLUS, *[PATCH] * 4, EQUALS, known[first] + known[second]]
            shown |= {first, second}
        seen.append(shown)
    assert not seen[0] & seen[1]
    other = DigitSums(train=300, validation=200, seed=4)
    assert not torch.equal(other.train.tokens, data.train.tokens)
    assert torch.equal(DigitSums(train=300, validation=200, seed=3).train.patches, data.train.patches)


def test_it_learns_and_survives_a_checkpoint(tmp_path):
    def learn():
        module = MultimodalModel(width=32)
        fit(module, DigitSums(4000, 100, batch_size=32), 120)
        return module

    one, two = learn(), learn()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    data = DigitSums(4000, 500)
    with quiet_lightning():
        trainer = make_trainer(1, [])
        (before,) = trainer.validate(MultimodalModel(width=32), datamodule=data, verbose=False)
        (after,) = trainer.validate(one, datamodule=data, verbose=False)
    assert after["val_loss"] < 0.8 * before["val_loss"]
    assert after["val_accuracy"] > 0.13
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = MultimodalModel.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.logits(data.validation)[0], one.logits(data.validation)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decoder().embedded(torch.tensor([[11, 11, 2]]), drawn(1)), "patches: there are 1 for 2 placeholders"),
        (lambda: decoder().embedded(torch.tensor([[1, 2]]), drawn(1)), "patches: there are 1 for 0 placeholders"),
        (
            lambda: decoder().embedded(torch.tensor([[11, 2]]), drawn(1, 5)),
            r"patches: have shape \[1, 5\]; give \[1, 4\]",
        ),
        (lambda: PatchDecoder(decoder().decoder, 4, 12), "placeholder: 12 is no token; give 0 to 11"),
        (lambda: PatchDecoder(decoder().decoder, 0, 11), "patch: is 0"),
        (lambda: patches_of(np.zeros((6, 8)), 4), "image: of 6 by 8 pixels cannot be cut into squares of 4"),
        (lambda: patches_of(np.zeros(8), 4), r"image: has shape \[8\]"),
        (lambda: interleave([], 11, 2), "parts: there are none"),
        (lambda: interleave([[1, 11]], 11, 2), "text number 0 has the placeholder 11"),
        (
            lambda: interleave([np.zeros((2, 2)), np.zeros((2, 2, 3))], 11, 2),
            "image number 1 has patches of 12 numbers",
        ),
        (lambda: batch_of([interleave([[1]], 11, 2)], []), "there are 0 for 1 questions"),
        (lambda: batch_of([interleave([[1]], 11, 2)], [[]]), "answers: one is empty"),
        (
            lambda: batch_of([interleave([np.zeros((n, n))], 11, n) for n in (2, 4)], [[1], [1]]),
            r"questions: have patches of \[4, 16\] numbers",
        ),
        (lambda: DigitSums(held_out=1.0), "held_out: is 1.0"),
        (lambda: DigitSums(train=0), "train: is 0"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
