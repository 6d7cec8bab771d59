"""Stars in the input: what the examples hold, what is learned from them, and what is not."""

import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning
from lightning_modules.sequence.in_context import InContextData, InContextDataset, InContextModule
from lightning_modules.sequence.training import fit
from lightning_modules.user_modules import read_user_module

HERE = "lightning_modules.sequence.in_context"


def test_examples_list_a_star_and_ask_for_one_of_its_arms():
    data = InContextDataset(3, 4, 20, batch_size=50)
    assert (data.nodes, data.prefix, data.context, data.vocabulary) == (10, 21, 25, 22)
    batch = data.batch(0)
    last = []
    for row in batch.tolist():
        edges = {tuple(row[at : at + 2]) for at in range(0, 18, 2)}
        path = row[21:]
        assert len(edges) == 9
        assert len({node for edge in edges for node in edge}) == 10
        assert set(zip(path, path[1:], strict=False)) <= edges
        assert row[18:21] == [data.question, path[0], path[-1]]
        assert sum(u == path[0] for u, _ in edges) == 3
        assert path[-1] not in {u for u, _ in edges}
        last.append(next(at for at in range(9) if row[2 * at + 1] == path[-1]))
    assert len(set(last)) > 5  # edges are shuffled
    assert batch.max() == data.question
    assert torch.equal(InContextDataset(3, 4, 20, True, batch_size=50).batch(0)[:, 21:], batch[:, 21:].flip(1))


def test_batches_come_from_the_number_of_their_step():
    data = InContextDataset(seed=3)
    batches = iter(data)
    first, second = next(batches), next(batches)
    assert not torch.equal(first, second)
    assert torch.equal(data.batch(1), second)
    assert not torch.equal(InContextDataset(seed=4).batch(0), first)


def test_losses_are_cross_entropies_of_the_path_alone():
    module, data = InContextModule(width=16), InContextData()
    module.learn(data.dataset)
    module.requires_grad_(False)
    batch = data.dataset.batch(0, 3)
    prefix = data.dataset.prefix
    logits = module.model(batch[:, :-1])[:, prefix - 1 :].log_softmax(-1)
    expected = -logits.gather(2, batch[:, prefix:, None])[..., 0].mean(1)
    assert module.per_example_losses(batch).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_teacherless_model_does_not_see_the_answer():
    module, data = InContextModule(width=16), InContextData(teacherless=True)
    module.learn(data.dataset)
    batch = data.dataset.batch(0, 4)
    other = batch.clone()
    other[:, data.dataset.prefix :] = (other[:, data.dataset.prefix :] + 1) % 12
    assert torch.equal(module._told(batch)[0], module._told(other)[0])
    seeing = InContextModule(width=16)
    seeing.learn(InContextData().dataset)
    assert not torch.equal(seeing._told(batch)[0], seeing._told(other)[0])


def test_what_follows_by_one_hop_is_learned_and_the_first_hop_is_not():
    data = InContextData(arms=2, length=3, labels=6)
    module = InContextModule(width=32, heads=2)
    fit(module, data, 250)
    found = module.measure(data.validation)
    assert found["token_0"] > 0.95
    assert found["token_2"] > 0.95
    assert found["full_path"] <= found["token_1"] + 0.02


def test_it_trains_by_name_and_its_checkpoints_load(tmp_path):
    user = read_user_module(f"{HERE}:InContextModule", f"{HERE}:InContextData")
    values = {"width": 16, "batch_size": 4, "validation": 30}
    fitted = user.fit(values, {"steps": 2, "checkpoint_every": 2}, lambda name: 0)
    names = {name for _, _, _, name, _ in fitted.rows}
    assert {"val_loss", "val_token_1", "val_full_path", "train_loss"} <= names
    torch.save(fitted.checkpoint(), tmp_path / "made.ckpt")
    loaded = InContextModule.load_from_checkpoint(tmp_path / "made.ckpt", weights_only=False)
    for one, other in zip(loaded.parameters(), fitted.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_wrong_settings_are_named():
    for make, message in (
        (lambda: InContextDataset(labels=8), "labels: 8 for 9 nodes; give 9 or more"),
        (lambda: InContextDataset(arms=1), "1 arms of 5 nodes"),
        (lambda: InContextDataset(batch_size=0), "batch_size: is 0"),
        (lambda: InContextData(validation=0), "validation: is 0"),
        (lambda: InContextModule(lr=-1.0), "lr: is -1.0"),
        (lambda: InContextModule(heads=5), "heads: 5 do not divide"),
        (lambda: fit(InContextModule(), InContextData(), 0), "steps: is 0"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    module = InContextModule(width=16)
    module.learn(InContextData().dataset)
    with pytest.raises(InputError, match="make another module"):
        module.learn(InContextData(labels=20).dataset)
    with pytest.raises(InputError, match="give InContextData"), quiet_lightning():
        make_trainer(1, []).fit(InContextModule(), train_dataloaders=[torch.zeros(1, 24).long()])
