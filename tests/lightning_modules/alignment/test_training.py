"""Training: what changes and what does not, what is learned, the same numbers again, and training by name."""

import copy
import itertools
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from lightning_modules.alignment.aligner import ContrastiveAligner
from lightning_modules.alignment.data import AlignmentData
from lightning_modules.alignment.dual_encoder import DualEncoder, Frozen, fit
from lightning_modules.alignment.heads import AlignmentHead
from lightning_modules.alignment.losses import LARGEST_SCALE
from lightning_modules.alignment.pairs import make_pairs
from lightning_modules.alignment.retrieval import retrieval_recall
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.user_modules import read_user_module
from tests.lightning_modules.alignment.worlds import D_IMAGE, D_TEXT, StandIn, brute_force_loss, things, world

HERE = "lightning_modules.alignment"


def recalled(module, pairs, k=5):
    found = retrieval_recall(module.embed_images(pairs.images), module.embed_texts(pairs.texts), (k,))
    return found.image_to_text[k], found.text_to_image[k]


class Whole(DualEncoder):
    """Frozen encoders that run at every step, and the same head."""

    def __init__(self, image_encoder, text_encoder, head):
        super().__init__(0.07, 1e-3, 0.1, 0.1, 0)
        self.image_encoder, self.text_encoder, self.head = Frozen(image_encoder), Frozen(text_encoder), head

    def image_vectors(self, images, generator=None):
        return self.image_encoder(images)

    def text_vectors(self, texts, generator=None):
        return self.head(self.text_encoder(texts), generator)


def test_few_pairs_align_unseen_ones_and_shuffled_captions_do_not():
    pairs = world()
    training, test = pairs.take(range(400)), pairs.take(range(400, 600))
    module, control = ContrastiveAligner(lr=1e-2), ContrastiveAligner(lr=1e-2)
    fit(module, training, 150, 128)
    fit(control, training.shuffled(0), 150, 128)
    assert min(recalled(module, test)) > 0.9
    assert max(recalled(control, test)) < 0.08  # chance 0.025


def test_deeper_heads_learn_too():
    pairs = world()
    module = ContrastiveAligner(layers=3, width=64, dropout=0.1, image_head=True, lr=1e-2)
    fit(module, pairs.take(range(400)), 150, 128)
    assert min(recalled(module, pairs.take(range(400, 600)))) > 0.8
    assert not torch.equal(module.image_map.weight, torch.eye(D_IMAGE))


def test_encoders_stay_what_they_are_and_only_head_and_temperature_are_trained():
    image_encoder, text_encoder = StandIn(D_IMAGE, 1), StandIn(D_TEXT, 2)
    before = [copy.deepcopy(encoder.state_dict()) for encoder in (image_encoder, text_encoder)]
    module = Whole(image_encoder, text_encoder, AlignmentHead(D_TEXT, D_IMAGE))
    raw = make_pairs(things(200), things(200))
    fit(module, raw, 10, 64)
    for encoder, old in zip((image_encoder, text_encoder), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in encoder.state_dict().items())
    trained = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert trained == {id(p) for p in (*module.head.parameters(), module.log_scale)}
    assert [group["weight_decay"] for group in module.parameter_groups()] == [0.1, 0.0]


def test_cached_vectors_train_to_the_numbers_that_running_encoders_give():
    raw, pairs = make_pairs(things(200), things(200)), world(200)
    head = AlignmentHead(D_TEXT, D_IMAGE, generator=torch.Generator().manual_seed(0))
    whole, cached = Whole(StandIn(D_IMAGE, 1), StandIn(D_TEXT, 2), head), ContrastiveAligner()
    fit(whole, raw, 15, 64)
    fit(cached, pairs, 15, 64)
    assert torch.allclose(whole.head.layers[0].weight, cached.head.layers[0].weight, atol=1e-5)
    assert whole.scale == pytest.approx(cached.scale, rel=1e-5)
    assert torch.allclose(whole.embed_texts(raw.texts), cached.embed_texts(pairs.texts), atol=1e-4)


def test_a_frozen_encoder_ignores_train_mode_where_a_plain_one_would_not():
    plain, seen = StandIn(D_IMAGE, 1), things(64)
    right = plain(seen).detach()
    frozen = Frozen(copy.deepcopy(plain)).train()
    assert torch.equal(frozen(seen), right)
    assert not any(p.requires_grad for p in frozen.parameters())
    cosines = nn.functional.cosine_similarity(plain.train()(seen).detach(), right)
    assert float(cosines.mean()) < 0.9


def test_the_loss_of_a_step_is_that_of_its_rows():
    pairs = world(50)
    module = ContrastiveAligner(temperature=0.1)
    module.connect(D_TEXT, D_IMAGE)
    module._training = pairs
    rows = torch.tensor([3, 40, 7, 21])
    with warnings.catch_warnings(action="ignore"):  # that nothing is logged
        loss = module.training_step(rows, 0).detach()
    taken = pairs.take(rows)
    assert float(loss) == pytest.approx(
        brute_force_loss(taken.images, module.text_vectors(taken.texts).detach(), 10.0), rel=1e-4
    )


def test_trainings_repeat_exactly_and_change_with_the_seed():
    pairs, weights = world(100), []
    for seed in (0, 0, 1):
        torch.manual_seed(len(weights))  # of no concern
        module = ContrastiveAligner(layers=2, width=16, seed=seed)
        fit(module, pairs, 5, 32, seed)
        weights.append(module.head.layers[1].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


class Temperature(DualEncoder):
    """Vectors as they are: only the temperature is trained."""

    def image_vectors(self, images, generator=None):
        return images

    text_vectors = image_vectors


def test_the_scale_is_held_at_its_bound():
    vectors = torch.randn(
        100, 3, generator=torch.Generator().manual_seed(0)
    )  # near each other: one can only become surer
    module, scales = Temperature(0.0105, 0.05, 0.0, 0.1, 0), Scales()
    fit(module, make_pairs(vectors, vectors), 20, 50, callbacks=[scales])
    assert max(scales.seen) == pytest.approx(LARGEST_SCALE, rel=1e-5)
    assert scales.seen[0] < scales.seen[-1]


class Scales(pl.Callback):
    """Remembers the scale after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.scale)


def table(tmp_path, split=False):
    pairs = world(120)
    features = {"image_features": (pairs.images, D_IMAGE), "text_features": (pairs.texts, D_TEXT)}
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(side.numpy().ravel()), width)
        for name, (side, width) in features.items()
    }
    columns["caption"] = [f"thing {i}" for i in range(120)]
    if split:
        columns["split"] = ["out" if i % 4 == 0 else "in" for i in range(120)]
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    return str(tmp_path / "pairs.parquet"), pairs


def test_it_trains_by_name_from_a_table_and_its_checkpoints_load(tmp_path):
    path, pairs = table(tmp_path)
    user = read_user_module(f"{HERE}.aligner:ContrastiveAligner", f"{HERE}.data:AlignmentData")
    values = {"pairs": path, "batch_size": 32, "layers": 2, "width": 16}
    fitted = user.fit(values, {"steps": 3, "checkpoint_every": 3}, lambda name: 0)
    logged = {name: value for _, _, _, name, value in fitted.rows}
    assert {"val_loss", "val_floor", "val_image_to_text_5", "val_text_to_image_1", "train_loss"} <= set(logged)
    assert logged["val_floor"] == 0
    torch.save(fitted.checkpoint(), tmp_path / "made.ckpt")
    loaded = ContrastiveAligner.load_from_checkpoint(tmp_path / "made.ckpt", weights_only=False)
    assert torch.equal(loaded.embed_texts(pairs.texts), fitted.module.embed_texts(pairs.texts))
    assert loaded.scale == fitted.module.scale


def test_a_study_can_search_the_head_the_temperature_and_the_batch():
    user = read_user_module(f"{HERE}.aligner:ContrastiveAligner", f"{HERE}.data:AlignmentData")
    assert {"layers", "width", "dropout", "temperature", "lr", "weight_decay", "batch_size"} == set(user.search_space())
    assert set(user.conditions()) == {"width", "dropout"}
    assert user.conditions()["width"][0] == "layers"


def test_a_tables_own_split_is_kept_and_a_budget_takes_some_of_the_rest(tmp_path):
    path, pairs = table(tmp_path, split=True)
    data = AlignmentData(path)
    assert torch.equal(data.validation.images, pairs.images[::4])
    assert len(data.training) == 90
    few = AlignmentData(path, budget=20, seed=1)
    assert len(few.training) == 20
    rows = {tuple(row) for row in pairs.images[::4].tolist()}
    assert not any(tuple(row) in rows for row in few.training.images.tolist())
    plain, _ = table(tmp_path)
    assert (len(AlignmentData(plain).training), len(AlignmentData(plain).validation)) == (96, 24)


def test_batches_are_row_numbers(tmp_path):
    data = AlignmentData(table(tmp_path)[0], batch_size=16)
    for batch in itertools.islice(iter(data.train_dataloader()), 3):
        assert batch.dtype == torch.int64
        assert batch.shape == (16,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_pairs_stay_there_and_it_learns_the_same():
    pairs = world()
    module = ContrastiveAligner(lr=1e-2)
    fit(module, pairs.take(range(400)), 150, 128)
    assert min(recalled(module, pairs.take(range(400, 600)))) > 0.9


def test_wrong_settings_and_inputs_are_named(tmp_path):
    pairs = world(20)
    trained = ContrastiveAligner()
    fit(trained, pairs, 1, 10)
    narrow = make_pairs(pairs.images, pairs.texts[:, :5])
    path, _ = table(tmp_path)
    for make, message in (
        (lambda: ContrastiveAligner(lr=0.0), "lr: is 0.0"),
        (lambda: ContrastiveAligner(weight_decay=-1.0), "weight_decay: is -1.0"),
        (lambda: ContrastiveAligner(warmup=1.0), "warmup: is 1.0"),
        (lambda: ContrastiveAligner(layers=0), "layers: is 0"),
        (lambda: ContrastiveAligner().embed_texts(pairs.texts), "has seen no features yet"),
        (lambda: fit(ContrastiveAligner(), pairs, 0), "steps: is 0"),
        (lambda: fit(ContrastiveAligner(), pairs.take([0]), 1), "pairs: 1 to train on"),
        (lambda: fit(trained, narrow, 1), "have widths 5 .text. and 40 .image., the head 24 and 40"),
        (lambda: trained.embed_texts(pairs.images), "texts: have shape"),
        (lambda: trained.embed_images(np.zeros((2, 3), dtype=np.float32)), "images: have shape"),
        (
            lambda: fit(ContrastiveAligner(), make_pairs(torch.zeros(4, 3, 8, 8), pairs.texts[:4]), 1),
            "encode them first",
        ),
        (lambda: AlignmentData(path, budget=-1), "budget: is -1"),
        (lambda: AlignmentData(path, held_out=0.0), "held_out: is 0"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(InputError, match="give PairsData"), quiet_lightning():
        make_trainer(1, []).fit(ContrastiveAligner(), train_dataloaders=[torch.zeros(2).long()])
