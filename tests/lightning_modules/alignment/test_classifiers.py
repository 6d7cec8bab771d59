"""Zero-shot classification, the references, curation, and the rivals that train towers."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.alignment.costs import trained_parameters
from lightning_modules.alignment.curation import CurationSampler, keyword_matches
from lightning_modules.alignment.dual_encoder import fit
from lightning_modules.alignment.pairs import make_pairs
from lightning_modules.alignment.references import RidgeAligner, linear_probe, nearest_class_mean
from lightning_modules.alignment.retrieval import retrieval_recall
from lightning_modules.alignment.towers import ClipFromScratch, LiTModule, bags_of_words, vocabulary_of
from lightning_modules.alignment.zero_shot import ZeroShotClassifier
from lightning_modules.errors import InputError
from tests.lightning_modules.alignment.worlds import D_IMAGE, D_TEXT, world


class Same:
    """Both sides are in one space already."""

    def embed_images(self, images):
        return nn.functional.normalize(torch.as_tensor(images), dim=1)

    embed_texts = embed_images


VECTORS = {"a cat": [10.0, 0, 0], "one cat": [0, 1.0, 0], "a dog": [0, 0, 2.0], "one dog": [0, 1.0, 1.0]}


def encode(prompts):
    return torch.tensor([VECTORS[prompt] for prompt in prompts])


def test_a_class_is_the_unit_mean_of_its_prompts_unit_vectors():
    classifier = ZeroShotClassifier.from_prompts(("cat", "dog"), ("a {}", "one {}"), encode, Same(), scale=2.0)
    cat = torch.tensor([1.0, 1.0, 0]) / 2**0.5
    dog = torch.tensor([0, 0.5**0.5, 1 + 0.5**0.5])
    assert torch.allclose(classifier.weights, torch.stack([cat, dog / dog.norm()]))
    images = torch.tensor([[3.0, 0, 0], [0, 0, 0.1]])
    assert torch.allclose(classifier.logits(images)[0], torch.tensor([2 * 0.5**0.5, 0.0]))
    assert classifier.predict(images).tolist() == [0, 1]
    assert classifier.accuracy(images, np.array([0, 0])) == 0.5


def test_wrong_classes_and_templates_are_named():
    good = {"classes": ("cat", "dog"), "templates": ("a {}",), "encode": encode, "aligner": Same()}
    for change, message in (
        ({"classes": ()}, "classes: there are none"),
        ({"classes": ("cat", " ")}, "empty name"),
        ({"templates": ()}, "templates: there are none"),
        ({"templates": ("a cat",)}, "'a cat' must have one {}"),
        ({"templates": ("{} and {}",)}, "must have one {}"),
        ({"templates": ("a {}", "one {}"), "encode": lambda p: torch.tensor([[1.0], [-1.0]] * 2)}, "cancel out"),
    ):
        with pytest.raises(InputError, match=message):
            ZeroShotClassifier.from_prompts(**{**good, **change})
    with pytest.raises(InputError, match="1 for 2 images"):
        ZeroShotClassifier.from_prompts(**good).accuracy(torch.eye(3)[:2], np.array([0]))
    with pytest.warns(UserWarning, match="2 are called 'cat'"):
        ZeroShotClassifier.from_prompts(("cat", "Cat "), ("a {}",), lambda p: torch.ones(2, 3), Same())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroShotClassifier.from_prompts(**good)


def test_ridge_has_no_gradient_left_and_finds_unseen_pairs():
    pairs = world()
    training, test = pairs.take(range(400)), pairs.take(range(400, 600))
    ridge = RidgeAligner(0.3).fit(training)
    u = training.texts.double()
    w = nn.functional.normalize(training.images.double(), dim=1)
    a, b = ridge._map.clone().requires_grad_(), ridge._offset.clone().requires_grad_()
    (((w - u @ a - b) ** 2).sum() + 0.3 * (a**2).sum()).backward()
    assert float(a.grad.abs().max()) < 1e-9
    assert float(b.grad.abs().max()) < 1e-9
    assert ridge.parameters == D_TEXT * D_IMAGE + D_IMAGE
    found = retrieval_recall(ridge.embed_images(test.images), ridge.embed_texts(test.texts))
    assert found.image_to_text[5] > 0.9


def test_ridge_names_what_is_wrong():
    pairs = world(20)
    for make, message in (
        (lambda: RidgeAligner(0.0), "penalty: is 0.0"),
        (lambda: RidgeAligner().embed_texts(pairs.texts), "is not fitted"),
        (lambda: RidgeAligner().fit(pairs).embed_texts(pairs.images), "texts: have shape"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_references_with_labels_tell_clusters_apart_and_know_chance():
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=400)
    means = generator.standard_normal((4, 10))
    vectors = means[labels] + 0.2 * generator.standard_normal((400, 10))
    parts = (vectors[:200], labels[:200], vectors[200:], labels[200:])
    assert linear_probe(*parts) > 0.95
    assert nearest_class_mean(*parts) > 0.95
    noise = generator.permutation(labels[:200])
    assert nearest_class_mean(vectors[:200], noise, *parts[2:]) < 0.6
    by_hand = [
        np.argmax([np.dot(v / np.linalg.norm(v), m / np.linalg.norm(m)) for m in class_means(*parts[:2])])
        for v in parts[2]
    ]
    assert nearest_class_mean(*parts) == pytest.approx(np.mean(np.array(by_hand) == parts[3]))


def class_means(vectors, labels):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return [unit[labels == label].mean(0) for label in range(4)]


def test_keywords_are_whole_words_in_any_case():
    captions = ("A Cat sleeps", "concatenate", "two hot  dogs", "a hot dog", "cat", "")
    assert keyword_matches(captions, ("cat", "Hot Dog")).tolist() == [True, False, False, True, True, False]


def test_curation_keeps_to_its_budget_its_rule_and_its_seed():
    captions = [f"a {name} number {i}" for i in range(30) for name in ("cat", "car")]

    def letters(texts):
        return np.array([[text.count("t"), text.count("r"), 1.0] for text in texts])

    for rule, code in (("keyword", None), ("similarity", letters)):
        chosen = CurationSampler(10, rule, 1).choose(captions, ("cat",), code)
        assert len(chosen) == 10
        assert all("cat" in captions[row] for row in chosen)
        assert np.array_equal(chosen, CurationSampler(10, rule, 1).choose(captions, ("cat",), code))
    first, other = (CurationSampler(10, "keyword", seed).choose(captions, ("cat",)) for seed in (1, 2))
    assert not np.array_equal(first, other)
    at_random = CurationSampler(30, "random").choose(captions, ("cat",))
    assert 5 < sum("cat" in captions[row] for row in at_random) < 25


def test_curation_names_what_is_wrong():
    for make, message in (
        (lambda: CurationSampler(0), "budget: is 0"),
        (lambda: CurationSampler(1, "best"), "rule: unknown 'best'"),
        (lambda: CurationSampler(3, "keyword").choose(("a cat", "a dog"), ("cat",)), "3 pairs are asked for, 1 fit"),
        (lambda: CurationSampler(1).choose(("a cat",), ("cat",)), "needs a text encoder"),
        (lambda: CurationSampler(1, "random").choose(("a cat",), ()), "classes: there are none"),
    ):
        with pytest.raises(InputError, match=message):
            make()


class Tower(nn.Module):
    """A mean of token embeddings."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, D_TEXT)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.randn(30, D_TEXT, generator=torch.Generator().manual_seed(0)))
        self.rows = []

    def forward(self, tokens, mask):
        self.rows.append(tuple(tokens.shape))
        return (self.embedding(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def tokens(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(1, 30, (count, 6), generator=generator)
    lengths = torch.randint(1, 7, (count, 1), generator=generator)
    return torch.where(torch.arange(6) < lengths, found, 0)


def test_lit_sorts_texts_by_length_without_mixing_them_up():
    tower = Tower()
    module = LiTModule(tower, D_TEXT, D_IMAGE)
    texts = tokens(40)
    texts[7] = texts[3]
    alone = torch.cat([module.text_vectors(texts[i : i + 1]) for i in range(40)])
    tower.rows.clear()
    assert torch.allclose(module.text_vectors(texts), alone, atol=1e-5)
    assert sum(rows for rows, _ in tower.rows) == len(torch.unique(texts, dim=0)) < 40
    assert sum(rows * length for rows, length in tower.rows) < 40 * 6


def test_lit_trains_the_whole_tower_and_leaves_images_alone():
    tower = Tower()
    before = tower.embedding.weight.detach().clone()
    target = torch.randn(D_TEXT, D_IMAGE, generator=torch.Generator().manual_seed(1))
    texts = tokens(300)
    with torch.no_grad():
        images = tower(texts, texts != 0) @ target
    pairs = make_pairs(images, texts)
    module = LiTModule(tower, D_TEXT, D_IMAGE, lr=1e-3)
    fit(module, pairs.take(range(200)), 150, 64)
    assert not torch.equal(before, tower.embedding.weight)
    assert trained_parameters(module) == 30 * D_TEXT + D_TEXT * D_IMAGE + D_IMAGE + 1
    assert torch.equal(module.image_vectors(images), images)
    found = retrieval_recall(module.embed_images(images[200:]), module.embed_texts(texts[200:]), (10,))
    assert found.image_to_text[10] > 0.5  # chance 0.1
    assert [group["lr"] for group in module.parameter_groups()] == [1e-3, 1e-3, 1e-3]


def test_both_towers_learn_from_scratch_what_colours_are_called():
    generator = np.random.default_rng(0)
    names = ("red", "green", "blue")
    kinds = generator.integers(3, size=60)
    images = generator.integers(0, 80, (60, 3, 16, 16), dtype=np.uint8)
    images[np.arange(60), kinds] += 150
    captions = [f"a {names[kind]} square" for kind in kinds]
    known = vocabulary_of(captions)
    assert known == ("a", "blue", "green", "red", "square")
    module = ClipFromScratch(len(known) + 1, channels=8, width=16)
    fit(module, make_pairs(images, bags_of_words(captions, known), captions).take(range(40)), 60, 20)
    classifier = ZeroShotClassifier.from_prompts(names, ("one {} square",), lambda p: bags_of_words(p, known), module)
    assert classifier.accuracy(torch.from_numpy(images[40:]), kinds[40:]) > 0.9


def test_bags_count_words_and_those_that_are_unknown():
    bags = bags_of_words(("Cat cat, dog!", "bird"), ("cat", "dog"))
    assert torch.allclose(bags, torch.tensor([[2, 1, 0], [0, 0, 1.0]]) / torch.tensor([[5**0.5], [1.0]]))
    with pytest.raises(InputError, match="row 1 .'!'. has no word"):
        bags_of_words(("a", "!"), ("a",))
