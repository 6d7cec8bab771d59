import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.sequence.distillation import DistillationData, DistillationModule, divergence, teach
from lightning_modules.sequence.sparse_targets import TAILS, KSparseTargets, bytes_per_token
from lightning_modules.sequence.target_files import StoredTargets, write_targets
from lightning_modules.sequence.token_source import TokenSource
from lightning_modules.sequence.training import fit


def distributions(rows=50, vocabulary=12, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, vocabulary, generator=generator, dtype=dtype)).softmax(-1)


def by_hand(p, k, tail):
    """Targets of one distribution after another, in loops of NumPy."""
    found = []
    for row in p.double().numpy():
        kept = np.argsort(-row)[:k]
        mass = row[kept].sum()
        q = np.full(len(row), 0.0 if tail == "renorm" or k == len(row) else (1 - mass) / (len(row) - k))
        q[kept] = row[kept] / mass if tail == "renorm" else row[kept]
        found.append(q)
    return torch.from_numpy(np.array(found))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("k", [1, 3, 11, 12])
def test_targets_and_losses_are_what_the_definitions_say(tail, k):
    p, logits = distributions(), distributions(seed=1).log() * 2
    targets = KSparseTargets.from_probs(p, k, tail)
    wanted = by_hand(p, k, tail)
    torch.testing.assert_close(targets.dense(), wanted, rtol=0, atol=1e-12)
    loss = -(wanted * logits.log_softmax(-1)).sum(1)
    torch.testing.assert_close(targets.cross_entropy(logits), loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tail", TAILS)
def test_the_loss_has_the_gradient_of_the_dense_one(tail):
    p, logits = distributions(), distributions(seed=1).log()
    targets = KSparseTargets.from_probs(p, 4, tail)
    sparse, dense = (logits.clone().requires_grad_() for _ in range(2))
    targets.cross_entropy(sparse).sum().backward()
    (-(by_hand(p, 4, tail) * dense.log_softmax(-1)).sum()).backward()
    torch.testing.assert_close(sparse.grad, dense.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_renormalised_targets_diverge_from_the_teacher_by_minus_log_of_the_mass(k):
    p = distributions()
    targets = KSparseTargets.from_probs(p, k)
    mass = p.sort(1, descending=True)[0][:, :k].sum(1)
    for row, q, m in zip(p, targets.dense(), mass, strict=True):
        assert divergence(row[None], row[None]) == 0
        assert divergence(q[None], row[None]) == pytest.approx(-float(m.log()), abs=1e-12)
    assert torch.allclose(targets.mass.double(), mass, atol=1e-7)


def test_keeping_everything_is_the_full_cross_entropy_whatever_the_tail():
    p, logits = distributions(dtype=torch.float32), distributions(seed=1).log().float()
    full = torch.nn.functional.cross_entropy(logits, p, reduction="none")
    for tail in TAILS:
        found = KSparseTargets.from_probs(p, 12, tail).cross_entropy(logits)
        torch.testing.assert_close(found, full, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("precision", [16, 32])
@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_files_give_back_what_was_written_batch_by_batch(tmp_path, precision, suffix):
    whole = KSparseTargets.from_probs(distributions(30, dtype=torch.float32), 4, "uniform")
    path = write_targets(tmp_path / f"targets{suffix}", (whole[a:b] for a, b in ((0, 7), (7, 8), (8, 30))), precision)
    stored = StoredTargets(path)
    assert (len(stored), stored.k, stored.vocabulary, stored.tail) == (30, 4, 12, "uniform")
    within = 0 if precision == 32 else 2**-10
    for index in (slice(0, 30), slice(5, 12), slice(8, 8), torch.tensor([29, 0, 7, 7, 8])):
        found, wanted = stored.rows(index), whole[index]
        assert torch.equal(found.ids, wanted.ids)
        assert torch.equal(found.mass, wanted.mass)
        torch.testing.assert_close(found.probabilities.float(), wanted.probabilities, rtol=within, atol=1e-7)
        torch.testing.assert_close(found.dense().sum(1), torch.ones(len(found)), rtol=0, atol=1e-6)


def test_a_file_is_a_table_for_other_programs(tmp_path):
    targets = KSparseTargets.from_probs(distributions(5, dtype=torch.float32), 3)
    schema = pq.read_table(write_targets(tmp_path / "a.parquet", targets)).schema
    assert schema.field("ids").type == pa.list_(pa.int32(), 3)
    assert schema.field("probabilities").type == pa.list_(pa.float16(), 3)
    assert schema.field("mass").type == pa.float32()


def test_a_large_arrow_file_is_mapped_not_read(tmp_path):
    part = KSparseTargets.from_probs(distributions(1000, 64, dtype=torch.float32), 32)
    path = write_targets(tmp_path / "a.arrow", (part for _ in range(60)))
    before = pa.total_allocated_bytes()
    stored = StoredTargets(path)
    found = stored.rows(slice(30_500, 30_600))
    assert pa.total_allocated_bytes() - before < 0.02 * path.stat().st_size
    assert torch.equal(found.ids, part.ids[500:600])
    assert stored.bytes_per_token == pytest.approx(bytes_per_token(32), rel=0.01)


def test_bytes_of_a_token():
    assert [bytes_per_token(1), bytes_per_token(8), bytes_per_token(8, 32)] == [10, 52, 68]


def test_probabilities_too_small_for_16_bits_are_made_up_for_by_the_mass(tmp_path):
    p = torch.tensor([[0.9, 0.1 - 4e-9, 2e-9, 2e-9]])
    for tail in TAILS:
        path = write_targets(tmp_path / f"{tail}.arrow", KSparseTargets.from_probs(p, 3, tail))
        q = StoredTargets(path).rows(slice(0, 1)).dense()
        torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-7)
        assert float(q.sum()) == pytest.approx(1, abs=1e-7)


def test_a_student_learns_from_a_teachers_file_what_it_learns_from_memory(tmp_path):
    source = TokenSource(16, seed=1)
    tokens = source.draw(64, 3, torch.Generator().manual_seed(0))
    teacher = DistillationModule(16, 2, width=16, seed=5)
    stored = StoredTargets(write_targets(tmp_path / "t.arrow", teach(teacher, tokens, 5, "uniform", 10), 32))
    assert len(stored) == 128
    memory = KSparseTargets.from_probs(teacher.probabilities(tokens), 5, "uniform")
    found = []
    for targets in (memory, stored, memory):
        student = DistillationModule(16, 2, width=16, seed=0)
        fit(student, DistillationData(tokens, targets, 16, seed=3), 60)
        found.append(student.probabilities(tokens))
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
    fresh = DistillationModule(16, 2, width=16, seed=0).probabilities(tokens)
    told = memory.dense()
    assert divergence(told, found[0]) < 0.5 * divergence(told, fresh)


def test_batches_have_each_tokens_own_target():
    source = TokenSource(16)
    tokens = source.draw(10, 4, torch.Generator().manual_seed(0))
    p = source.after_each(tokens)
    for targets in (KSparseTargets.from_probs(p, 16), p):
        for batch, told in DistillationData(tokens, targets, 3, seed=1).train_dataloader():
            dense = told if isinstance(told, torch.Tensor) else told.dense()
            torch.testing.assert_close(dense, source.after_each(batch), rtol=0, atol=1e-6)


def test_a_source_draws_what_it_says():
    source = TokenSource(5, height=2.0)
    drawn = source.draw(40_000, 3, torch.Generator().manual_seed(0))
    rows = drawn[(drawn[:, 0] == 1) & (drawn[:, 1] == 3)]
    wanted = source.after_each(torch.tensor([[1, 3, 0]]))[1]
    torch.testing.assert_close(rows[:, 2].bincount(minlength=5) / len(rows), wanted, rtol=0, atol=0.04)
    assert torch.equal(drawn, source.draw(40_000, 3, torch.Generator().manual_seed(0)))


P = distributions(3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: KSparseTargets.from_probs(P, 0), "k: is 0; give 1 to 4"),
        (lambda _: KSparseTargets.from_probs(P, 5), "k: is 5; give 1 to 4"),
        (lambda _: KSparseTargets.from_probs(2 * P, 1), "p: has rows that are no distributions"),
        (lambda _: KSparseTargets.from_probs(P * float("nan"), 1), "p: has rows that are no distributions"),
        (lambda _: KSparseTargets.from_probs(P[0], 1), "p: is torch.float64 of shape"),
        (lambda _: KSparseTargets.from_probs(P, 1, "zero"), "tail: unknown 'zero'; choose from renorm, uniform"),
        (lambda _: KSparseTargets.from_probs(P, 1).cross_entropy(P[:2]), "logits: have shape"),
        (lambda d: write_targets(d / "a.csv", KSparseTargets.from_probs(P, 1)), "path: 'a.csv' ends in '.csv'"),
        (lambda d: write_targets(d / "a.arrow", []), "batches: there is none"),
        (
            lambda d: write_targets(d / "a.arrow", [KSparseTargets.from_probs(P, k) for k in (1, 2)]),
            "batches: differ in k",
        ),
        (lambda d: StoredTargets(d / "none.arrow"), "none.arrow: cannot be read as targets"),
        (lambda d: DistillationData(torch.zeros(3, 4).long(), P), "targets: are of 3 tokens; give those of 9"),
        (lambda _: TokenSource(1), "vocabulary: is out of range"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, make, message):
    with pytest.raises(InputError, match=message) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)


def test_a_table_of_something_else_is_refused(tmp_path):
    pq.write_table(pa.table({"ids": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet: holds no k-sparse targets"):
        StoredTargets(tmp_path / "a.parquet")
