"""Clusters, breakthroughs, baselines, the planted skill, and checkpoints from a training or a folder."""

import numpy as np
import pytest
import torch

from lightning_modules.dynamics.baselines import exact_loss_curves, fisher_curves, loss_change_curves
from lightning_modules.dynamics.basis import RandomBasis
from lightning_modules.dynamics.breakthroughs import (
    BREAKTHROUGHS,
    break_steps,
    breakthrough,
    breakthrough_table,
    hidden_fraction,
)
from lightning_modules.dynamics.clusters import (
    Cluster,
    best_f1,
    cluster_curves,
    clusters_of,
    f1,
    filter_directions,
    filter_tokens,
    find_clusters,
    homogeneity,
    precision,
    recall,
)
from lightning_modules.dynamics.flat import FlatParameters
from lightning_modules.dynamics.hessian_basis import HessianBasis
from lightning_modules.dynamics.planted_skill import planted_examples, train_planted
from lightning_modules.dynamics.polca import Projected, polca
from lightning_modules.dynamics.recorder import CheckpointRecorder, Checkpoints, read_checkpoints
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning
from lightning_modules.sequence.addition import AdditionData, AdditionLM


def drops(at, count, generator, steps=41):
    """Curves that fall from 0 to -1 within a step, with a little noise."""
    fallen = -(np.arange(steps) >= at).astype(float)
    return fallen + 0.01 * generator.standard_normal((count, steps))


def projected(curves):
    """As if one direction had given these curves [n, T]."""
    rows = torch.from_numpy(curves - curves[:, :1]).T
    values = rows.diff(dim=0)[:, None]
    steps = tuple(range(0, 10 * len(rows), 10))
    return Projected(steps, values, torch.zeros_like(rows)[:, None], rows, rows[:-1, :1], 0.0, 0.0, -1.0)


def test_a_breakthrough_is_the_end_of_a_drop_and_with_the_other_sign_its_onset():
    curve = np.interp(np.arange(60), [0, 20, 30, 59], [1.0, 1.0, 0.0, 0.0])
    assert breakthrough(curve, 5) == 30
    assert breakthrough(curve, 5, sign=-1) == 20
    assert breakthrough(np.stack([curve, curve[::-1] * -1]), 5).tolist() == [30, 39]
    for delta, sign, message in ((0, 1, "delta: is 0 of 60"), (30, 1, "give 1 to 29"), (5, 2, "sign: is 2")):
        with pytest.raises(InputError, match=message):
            breakthrough(curve, delta, sign)


def test_curves_that_break_together_are_clusters_and_noise_is_none():
    generator = np.random.default_rng(0)
    curves = np.concatenate([drops(8, 60, generator), drops(30, 40, generator), generator.uniform(-5, 5, (20, 41))])
    labels = cluster_curves(curves, min_cluster_fraction=0.1)
    assert len(set(labels[:60])) == len(set(labels[60:100])) == 1
    assert labels[0] != labels[60]
    assert set(labels[100:]) == {-1}
    found = projected(np.concatenate([curves[:100], -curves[:30]]))
    clusters = find_clusters(found, 0.1)
    assert sorted(len(cluster.members) for cluster in clusters) == [40, 60]
    assert hidden_fraction(found, clusters, 200, 4) == 0.5
    assert hidden_fraction(found, [], 200, 4) == 0
    late = max(clusters, key=lambda c: break_steps(found, c, 4).mean())
    assert set(late.members) == set(range(60, 100))
    assert set(break_steps(found, late, 4)) <= {
        300,
        310,
        320,
        330,
    }  # a drop within one interval bends all of these alike
    table = breakthrough_table(found, clusters, 4)
    assert table.schema.equals(BREAKTHROUGHS)
    assert table.num_rows == 100
    assert np.allclose(table["change"].to_numpy(), -1, atol=0.1)
    assert breakthrough_table(found, [], 4).num_rows == 0


def test_a_cluster_is_a_share_of_all_examples_also_where_few_are_left():
    generator = np.random.default_rng(1)
    curves = np.concatenate([drops(8, 20, generator), drops(30, 20, generator)])
    assert len(clusters_of(curves, of=40, min_cluster_fraction=0.2)) == 2
    assert clusters_of(curves, of=1000, min_cluster_fraction=0.2) == []
    numbers = np.arange(100, 140)
    assert clusters_of(curves, 3, numbers, min_cluster_fraction=0.2)[0].members.min() >= 100
    for bad, message in (
        (lambda: cluster_curves(curves, 0), "min_cluster_fraction is 0"),
        (lambda: cluster_curves(curves * np.nan), "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            bad()


def test_filters_keep_what_falls():
    final = torch.tensor([[-1.0, 2.0, -4.0], [1.0, 1.0, -1.0]])
    assert filter_directions(final) == [0]
    assert filter_tokens(final[0]).tolist() == [0, 2]


def test_scores_of_clusters():
    skill = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    one, two = Cluster(0, np.array([0, 1, 4])), Cluster(0, np.array([2, 6, 7]))
    other = Cluster(1, np.array([3]))
    clusters = [one, two, other]
    assert precision(one, skill) == pytest.approx(2 / 3)
    assert recall(one, skill) == 0.5
    assert recall(one, skill, clusters) == pytest.approx(2 / 3)
    assert f1(one, skill) == pytest.approx(4 / 7)
    assert homogeneity(clusters, skill) == 1
    assert best_f1(clusters[:2], skill) == pytest.approx(4 / 7)
    assert best_f1(clusters[:2], skill, noise_counts=False) == pytest.approx(2 / 3)
    assert homogeneity([], skill) == best_f1([], skill) == 0
    assert f1(Cluster(0, np.array([5])), skill) == 0


def test_the_planted_skill_is_found_along_the_hessian_and_not_along_random_directions():
    made = train_planted(0)
    hessian = polca(made.held_out, made.checkpoints, HessianBasis(1, 120, 20).fit(made.checkpoints, [made.training]))
    chance = polca(made.held_out, made.checkpoints, RandomBasis(20).fit(made.checkpoints))
    clusters = find_clusters(hessian)
    assert best_f1(clusters, made.hidden) >= 0.9
    assert homogeneity(clusters, made.hidden) >= 0.98
    assert best_f1(find_clusters(chance), made.hidden) <= 0.65
    assert best_f1(clusters_of(exact_loss_curves(hessian)), made.hidden) <= 0.4
    assert clusters_of(loss_change_curves(hessian)) == []
    assert 0.75 <= hessian.share <= 0.9
    assert 0.15 <= chance.share <= 0.35
    assert np.all(fisher_curves(hessian, 3) >= 0)
    assert exact_loss_curves(hessian).shape == (600, 121)


def test_planted_examples_are_as_described_and_repeat():
    x, y, hidden = planted_examples(200, np.random.default_rng(3))
    assert hidden.sum() == 100
    assert set(x[hidden, 3].tolist()) == {-1.0, 1.0}
    assert set(x[~hidden, 3].tolist()) == {0.0}
    assert float((y - x * torch.tensor([2, 1.5, 1.2, 1.0])).std()) == pytest.approx(0.05, rel=0.1)
    again = train_planted(3, steps=10, every=5)
    assert torch.equal(again.checkpoints[2], train_planted(3, steps=10, every=5).checkpoints[2])
    with pytest.raises(InputError, match="planted skill: 5 steps, recorded every 10"):
        train_planted(0, steps=5, every=10)


def trained(recorder, steps=7):
    module = AdditionLM(digits=1, layers=1, width=8, heads=2, hidden=8)
    with quiet_lightning():
        trainer = make_trainer(steps, [recorder], limit_val_batches=0, num_sanity_val_steps=0)
        trainer.fit(module, datamodule=AdditionData(digits=1, validation=20, batch_size=16))
    return module


def test_a_training_is_recorded_in_memory_or_in_a_folder_that_can_be_read_again(tmp_path):
    memory, disk = CheckpointRecorder(3), CheckpointRecorder(3, str(tmp_path / "records"))
    module = trained(memory)
    trained(disk)
    found, stored = memory.checkpoints(), disk.checkpoints()
    assert found.steps == stored.steps == [0, 3, 6]
    read = read_checkpoints(str(tmp_path / "records"), module, torch.double)
    for t in range(3):
        assert torch.equal(found[t], stored[t])
        assert torch.equal(found[t].double(), read[t])
    assert not torch.equal(found[0], found[1])
    assert found.every(6).steps == [0, 6]
    assert found.to(torch.double)[0].dtype == torch.double
    trained(memory, 9)  # another training, not the first one gone on
    assert memory.checkpoints().steps == [0, 3, 6, 9]
    with pytest.raises(InputError, match="every: is 0"):
        CheckpointRecorder(0)
    with pytest.raises(InputError, match="checkpoints: there are 0; give 2 or more"):
        CheckpointRecorder(1).checkpoints()


def test_ones_own_checkpoints_are_read_whatever_wrote_them(tmp_path):
    import safetensors.torch

    module = AdditionLM(digits=1, layers=1, width=8, heads=2, hidden=8)
    flat, state = FlatParameters(module), module.state_dict()
    plain = {name: value + 1 for name, value in state.items()}
    torch.save(state, tmp_path / "step-0.pt")
    torch.save({"state_dict": plain, "epoch": 3}, tmp_path / "epoch=3-step=20.ckpt")
    safetensors.torch.save_file({name: value + 2 for name, value in state.items()}, tmp_path / "step-100.safetensors")
    (tmp_path / "notes.txt").write_text("ours")
    found = read_checkpoints(str(tmp_path), module)
    assert found.steps == [0, 20, 100]
    for t in range(3):
        assert torch.allclose(found[t], flat.vector() + t)


def test_a_folder_that_cannot_be_used_says_why(tmp_path):
    module = AdditionLM(digits=1, layers=1, width=8, heads=2, hidden=8)
    other = AdditionLM(digits=1, layers=1, width=4, heads=2, hidden=8)

    def refused(message):
        with pytest.raises(InputError, match=message) as caught:
            found = read_checkpoints(str(tmp_path), module)
            _ = [found[t] for t in range(len(found))]
        assert "\n" not in str(caught.value)

    refused("has no checkpoints; give files like step-100.pt")
    torch.save(module.state_dict(), tmp_path / "step-0.pt")
    refused("checkpoints: there are 1; give 2 or more")
    torch.save(other.state_dict(), tmp_path / "step-5.pt")
    refused("step-5.pt: its weights do not fit")
    np.save(tmp_path / "step-3.npy", np.zeros(5, np.float32))
    refused("has 5 parameters, the module")
    (tmp_path / "step-3.npy").unlink()
    (tmp_path / "step-5.pt").unlink()
    torch.save({name: value * np.nan for name, value in module.state_dict().items()}, tmp_path / "step-7.pt")
    refused("the one of step 7 has weights that are not finite")
    torch.save(module.state_dict(), tmp_path / "last-7.pt")
    refused("is of step 7 as last-7.pt is")
    torch.save(module.state_dict(), tmp_path / "final.pt")
    refused("final.pt: its name has no step")
    with pytest.raises(InputError, match="is no folder"):
        read_checkpoints(str(tmp_path / "nowhere"), module)
    for steps, weights, message in (
        ([0, 1], [torch.zeros(3), torch.zeros(4)], "the one of step 1 has 4 weights, the first one 3"),
        ([0, 1], [torch.zeros(3), torch.full((3,), np.inf)], "step 1 has weights that are not finite"),
        ([0, 0], torch.zeros(2, 3), "steps do not rise"),
        ([0], torch.zeros(2, 3), "1 steps for 2 vectors"),
    ):
        with pytest.raises(InputError, match=message):
            Checkpoints(steps, weights)
