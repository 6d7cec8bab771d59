"""Memorising a graph: losses, batches, controls, checkpoints, and what is found on held-out paths."""

import numpy as np
import pytest
import torch

from lightning_modules.dynamics.geometry.cosines import end_cosines
from lightning_modules.dynamics.geometry.probes import EdgeRecall, GeometryProbe
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.sequence.in_weights import InWeightsModule
from lightning_modules.sequence.in_weights_data import InWeightsBatches, InWeightsData
from lightning_modules.sequence.training import fit
from lightning_modules.user_modules import read_user_module

SMALL = {"arms": 6, "length": 4, "edges": 36, "paths": 4}
MODULE, DATA = (
    "lightning_modules.sequence.in_weights:InWeightsModule",
    "lightning_modules.sequence.in_weights_data:InWeightsData",
)


def small(**options):
    module, data = InWeightsModule(width=16, **options), InWeightsData(**SMALL)
    module.learn(data.dataset)
    return module, data


def cosines(module, data):
    return end_cosines(module.node_vectors().numpy(), *data.dataset.held_out_ends())


def test_the_standard_decoder_has_the_known_number_of_parameters():
    module = InWeightsModule()
    module.learn(InWeightsData().dataset)
    assert module.decoder.config.vocabulary == 404
    assert sum(p.numel() for p in module.parameters()) == 126_528


def test_losses_are_cross_entropies_of_answers_alone():
    module, data = small()
    dataset = data.dataset
    model = module.decoder
    u, v = dataset.edges[5]
    model.requires_grad_(False)
    logits = model(torch.tensor([[dataset.edge_token, u]]))[0, -1]
    edge = -logits.log_softmax(0)[v]
    path = dataset.paths[2]
    logits = model(path[None, :-1])[0].log_softmax(-1)
    answer = -torch.stack([logits[at - 1, path[at]] for at in range(dataset.prefix, len(path))]).mean()
    batch = {"edges": dataset.edges[5][None, None], "paths": path[None]}
    assert module.per_example_losses(batch).tolist() == pytest.approx([float(edge), float(answer)], rel=1e-5)
    assert module.training_step(batch, 0).item() == pytest.approx(float(edge + 0.05 * answer), rel=1e-5)
    module.hparams["path_weight"] = 0.0
    assert module.training_step(batch, 0).item() == pytest.approx(float(edge), rel=1e-5)


def test_padding_behind_short_answers_is_neither_read_nor_asked(tmp_path):
    file, queries = tmp_path / "graph.txt", tmp_path / "queries.txt"
    file.write_text("\n".join(f"{i} {i + 1}" for i in range(6)))
    queries.write_text("0,5\n2,3\n")
    data = InWeightsData(graph=str(file), queries=str(queries), train_fraction=1.0, edges=4, paths=2)
    module = InWeightsModule(width=16)
    module.learn(data.dataset)
    long, short = module.per_example_losses({"paths": data.dataset.paths})
    cut = data.dataset.paths[1:, : data.dataset.prefix + 2]
    assert module.per_example_losses({"paths": cut}).item() == pytest.approx(short.item(), rel=1e-5)
    assert long.item() != pytest.approx(short.item())
    assert set(module.measure(data.dataset)) == {"edge_recall", "train_first_token", "train_full_path"}


def test_batches_come_from_the_number_of_their_step_and_hold_training_paths_only():
    data = InWeightsData(**SMALL)
    batches = iter(data.train_dataloader())
    first, second = next(batches), next(batches)
    assert not torch.equal(first["edges"], second["edges"])
    assert torch.equal(data.batches.batch(1)["edges"], second["edges"])
    assert torch.equal(data.batches.batch(1)["paths"], second["paths"])
    other = InWeightsBatches(data.dataset, 36, 4, seed=1).batch(0)
    assert not torch.equal(other["edges"], first["edges"])
    assert (first["edges"].shape, first["paths"].shape) == ((4, 9, 2), (4, 8))
    trained = {tuple(path) for path in data.dataset.paths[data.dataset.train].tolist()}
    drawn = {tuple(path) for step in range(50) for path in data.batches.batch(step)["paths"].tolist()}
    assert drawn == trained
    whole = InWeightsData(graph="cycle", length=7, edges=0, paths=0)
    assert torch.equal(whole.batches.batch(3)["edges"][:, 0], whole.dataset.edges)
    assert sum(len(batch["edges"]) for batch in whole.val_dataloader()) == 14
    probed = data.probe_batches(38)
    assert [len(part) for batch in probed for part in batch.values()] == [36, 2]


def test_a_small_star_is_memorised_with_geometry_and_without():
    data = InWeightsData(arms=60, length=3, edges=240, paths=24, target="hardest")
    module = InWeightsModule()
    rows = []
    probes = (EdgeRecall(50), GeometryProbe(50))
    for probe in probes:
        probe.listen(rows.append)
    fit(module, data, 200, probes)
    found = module.measure(data.dataset)
    assert found["edge_recall"] == 1.0
    assert found["first_token"] >= 0.8  # chance is 1/60
    arms = cosines(module, data)
    assert arms.diagonal - arms.off_diagonal > 0.3
    assert arms.nearest >= 0.9
    series = {}
    for row in rows:
        series.setdefault((row.probe, row.step), {}).update({name: value for name, _, value in row.series})
    assert series["edge-recall", 0]["edge_recall"] < 0.3
    assert series["edge-recall", 200]["edge_recall"] == 1.0
    assert series["geometry", 200]["diagonal"] == pytest.approx(arms.diagonal, abs=1e-5)
    assert series["geometry", 200]["nearest"] == arms.nearest
    frozen = InWeightsModule(freeze_embeddings=True, embedding_std=0.3, path_weight=1.0)
    frozen.learn(data.dataset)
    before = frozen.node_vectors().clone()
    fit(frozen, data, 60)
    assert torch.equal(frozen.node_vectors(), before)
    assert 0.25 < before.std() < 0.35


def test_greedy_answers_are_right_where_all_told_tokens_are():
    data = InWeightsData(arms=6, length=4, edges=36, paths=6, train_fraction=1.0)
    module = InWeightsModule(width=32, path_weight=1.0, warmup=10)
    fit(module, data, 60)
    dataset = data.dataset
    decoded = module.answer(dataset.paths[:, : dataset.prefix], dataset.answer)
    told = module.decoder(dataset.paths[:, :-1]).argmax(-1)[:, dataset.prefix - 1 :]
    right = dataset.paths[:, dataset.prefix :]
    assert ((decoded == right).all(1) == (told == right).all(1)).all()
    assert module.measure(dataset)["train_full_path"] == float((decoded == right).all(1).float().mean()) > 0.5


class _SaveAt(pl.Callback):
    def __init__(self, step, file):
        self._step, self._file = step, file

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self._step:
            trainer.save_checkpoint(self._file)


def test_a_training_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path):
    file = tmp_path / "at4.ckpt"

    def train(start, callbacks, saved=None):
        module, data = InWeightsModule(width=16, warmup=3), InWeightsData(**SMALL)
        batches = data.batches
        data.train_dataloader = lambda: (batches.batch(step) for step in range(start, 100))
        with quiet_lightning():
            trainer = make_trainer(8, callbacks, limit_val_batches=0)
            trainer.fit(module, datamodule=data, ckpt_path=saved, weights_only=False)
        return module

    whole, rest = train(0, [_SaveAt(4, file)]), train(4, [], file)
    for one, other in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(one, other)


def test_shiftlabs_own_trainings_validate_and_leave_checkpoints(tmp_path):
    user = read_user_module(MODULE, DATA)
    fitted = user.fit({**SMALL, "width": 16}, {"steps": 3, "checkpoint_every": 3}, lambda name: 0)
    file = tmp_path / "made.ckpt"
    torch.save(fitted.checkpoint(), file)
    loaded = InWeightsModule.load_from_checkpoint(file, weights_only=False)
    assert torch.equal(loaded.node_vectors(), fitted.module.node_vectors())
    logged = {name: value for _, _, _, name, value in fitted.rows}
    assert {"val_loss", "val_edge_recall", "val_first_token", "val_full_path", "train_full_path"} <= set(logged)


def test_a_mamba_decoder_learns_edges():
    data = InWeightsData(arms=10, length=4, edges=60, paths=0)
    module = InWeightsModule(width=32, mixer="mamba", state=4, path_weight=0.0, warmup=20)
    fit(module, data, 160)
    assert module.measure(data.dataset)["edge_recall"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path_weight": -1.0}, "path_weight: is -1.0"),
        ({"lr": 0.0}, "lr: is 0.0"),
        ({"heads": 3}, "heads: 3 do not divide"),
        ({"init_std": float("nan")}, "init_std: is nan"),
    ],
)
def test_wrong_settings_are_named_at_once(options, message):
    with pytest.raises(InputError, match=message):
        InWeightsModule(**options)


def test_wrong_data_are_named(tmp_path):
    for options, message in (
        ({"graph": "ring"}, "'ring' is no file; give one of edges, or path_star"),
        ({"paths": 30}, "30 do not divide 512"),
        ({"edges": -1}, "edges: is -1"),
    ):
        with pytest.raises(InputError, match=message):
            InWeightsData(**options)
    module, _ = small()
    with pytest.raises(InputError, match="make another module"):
        module.learn(InWeightsData(arms=7, length=4).dataset)
    with pytest.raises(InputError, match="has seen no graph yet"):
        InWeightsModule().decoder  # noqa: B018
    with pytest.raises(InputError, match="give InWeightsData"), quiet_lightning():
        make_trainer(1, []).fit(InWeightsModule(), train_dataloaders=[{"edges": torch.zeros(1, 1, 2).long()}])
    with pytest.raises(InputError, match="steps: is 0"):
        fit(InWeightsModule(), InWeightsData(**SMALL), 0)
    with pytest.raises(InputError, match="needs a module with hop_scores"), quiet_lightning():
        make_trainer(1, [EdgeRecall()]).fit(_Other(), datamodule=InWeightsData(**SMALL))


class _Other(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_global_random_numbers_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    module, data = small()
    data.batches.batch(0)
    small(mixer="mamba")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
