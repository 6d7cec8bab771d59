import pytest
import torch
from torch import nn

from lightning_modules.errors import InputError
from lightning_modules.sequence.decoding import Forced, write
from lightning_modules.sequence.draws import generator_of
from lightning_modules.sequence.selected_tokens import SelectedTokensData, SelectedTokensModule
from lightning_modules.sequence.thinking import ThinkingTask, budget_bounds, generate
from lightning_modules.sequence.training import fit
from lightning_modules.sequence.transformer import Transformer, TransformerConfig


def make(seed=0, **options):
    config = TransformerConfig(**{"vocabulary": 6, "context": 20, "init_std": 0.4, "width": 16, "heads": 2} | options)
    return Transformer(config, torch.Generator().manual_seed(seed)).double().eval()


def by_hand(model, prefix, limit, stop, draws=None, token=None, after=None, temperature=1.0):
    """One sequence at a time, without a cache: tokens, log-probabilities, whether each was chosen."""
    found = []
    for row, start in enumerate(prefix.tolist()):
        told, logs, chosen = list(start), [], []
        for place in range(limit):
            p = (model(torch.tensor([told]))[0, -1].detach() / temperature).softmax(-1)
            free = not (token is not None and token not in told[len(start) :] and place >= after[row])
            if not free:
                following = token
            elif draws is None:
                following = int(p.argmax())
            else:
                following = int((p.cumsum(0) <= draws[row, place]).sum().clamp(max=len(p) - 1))
            told.append(following)
            logs.append(float(p[following].log()))
            chosen.append(free)
            if following == stop:
                break
        found.append((told[len(start) :], logs, chosen))
    return found


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("after", [None, 0, 2, "each"])
def test_writing_is_what_one_sequence_at_a_time_gives(sampling, after):
    model, limit, stop = make(), 9, 5
    prefix = torch.randint(6, (40, 4), generator=generator_of(1))
    bounds = torch.arange(40) % 4 if after == "each" else torch.full((40,), after or 0)
    forced = None if after is None else Forced(4, bounds if after == "each" else after)
    draws = torch.rand(40, limit, generator=generator_of(2)) if sampling else None
    found = write(model, prefix, limit, stop, generator_of(2) if sampling else None, 1.3, forced)
    wanted = by_hand(model, prefix, limit, stop, draws, None if forced is None else 4, bounds.tolist(), 1.3)
    for row, (tokens, logs, chosen) in enumerate(wanted):
        length = int(found.lengths[row])
        assert found.tokens[row, :length].tolist() == tokens
        assert found.log_probabilities[row, :length].tolist() == pytest.approx(logs, abs=1e-5)
        assert found.chosen[row, :length].tolist() == chosen
        assert (found.tokens[row, length:] == stop).all()
        assert not found.chosen[row, length:].any()
        assert not found.log_probabilities[row, length:].any()
    assert len(set(found.lengths.tolist())) > 1 or not sampling


def test_draws_follow_the_probabilities_and_leave_the_global_state_alone():
    model, before = make(), torch.get_rng_state()
    prefix = torch.tensor([[1, 2, 3]]).expand(20_000, -1)
    found = write(model, prefix, 1, 0, generator_of(3), temperature=2.0)
    wanted = (model(prefix[:1])[0, -1] / 2).softmax(-1)
    torch.testing.assert_close(found.tokens[:, 0].bincount(minlength=6) / 20_000, wanted.float(), rtol=0, atol=0.012)
    assert torch.equal(before, torch.get_rng_state())


def test_writing_leaves_the_mode_as_it_was_even_where_it_fails():
    model = make().train()
    write(model, torch.zeros(1, 2).long(), 2, 5)
    assert model.training
    with pytest.raises(InputError, match="context"):
        write(model, torch.zeros(1, 19).long(), 5, 7)
    assert model.training


def read(task, row):
    return "".join(task.alphabet[token] for token in row.tolist())


def test_examples_are_right_and_cut_ones_have_no_loss_on_what_was_forced():
    task = ThinkingTask(6, 7, 2)
    found = task.examples(500, generator_of(0), cut=0.5)
    cuts = 0
    for tokens, weights in zip(found.tokens, found.weights, strict=True):
        prompt, trace = read(task, tokens).split("?")
        numbers = [int(letter) for letter in prompt.rstrip("_")]
        thought, answer = trace.rstrip("_").split("=")
        assert 2 <= len(numbers) - 1 <= 6
        running = [sum(numbers[: n + 2]) % 7 for n in range(len(numbers) - 1)]
        assert [int(letter) for letter in thought] == running[: len(thought)]
        assert answer == f"{running[-1]}."
        is_cut = len(thought) < len(running)
        cuts += is_cut
        start = len(prompt) + 1
        told = [0.0] * start + [1.0] * (len(thought) + 3)
        told[start + len(thought)] = 0.0 if is_cut else 1.0
        assert weights.tolist() == told + [0.0] * (len(weights) - len(told))
    assert 190 < cuts < 310
    whole = task.examples(500, generator_of(0), cut=0.5, forced_weight=1.0)
    assert int((whole.weights - found.weights).sum()) == cuts
    assert torch.equal(whole.tokens, found.tokens)


def test_wrong_tokens_are_as_many_as_asked_for():
    task = ThinkingTask(3, 5, 3)
    found, right = (task.examples(4000, generator_of(0), 0.0, wrong) for wrong in (0.3, 0.0))
    differs = (found.tokens != right.tokens).double().mean(0)
    told = [task.prompt_length + place for place in (0, 1, 2, 4)]
    assert differs[told].tolist() == pytest.approx([0.3] * 4, abs=0.03)
    assert float(differs.sum()) == pytest.approx(1.2, abs=0.1)


class Scripted(nn.Module):
    """Adds up rightly and stops by itself: what `write` asks of a transformer, computed from the tokens."""

    def __init__(self, task):
        super().__init__()
        self.task, self.seen = task, None

    def forward(self, tokens, cache):
        # The cache goes along with the rows that go on; here it holds their tokens.
        before = cache.layers[0][0] if cache.layers else tokens[:, :0]
        whole = torch.cat([before, tokens], 1)
        cache.layers = [(whole, whole)]
        told = torch.tensor([self.after(row) for row in whole.tolist()])
        return nn.functional.one_hot(told, self.task.vocabulary)[:, None] * 30.0

    def after(self, row):
        prompt, trace = "".join(self.task.alphabet[token] for token in row).split("?")
        numbers = [int(letter) for letter in prompt.rstrip("_")]
        if "=" not in trace:
            done = len(trace)
            return sum(numbers[: done + 2]) % self.task.modulus if done < len(numbers) - 1 else self.task.answer_token
        if trace.endswith("="):  # one more addition within the answer
            return sum(numbers[: len(trace) + 1]) % self.task.modulus
        return self.task.end_token


def test_a_budget_cuts_thinking_and_a_model_that_stops_by_itself_uses_less():
    task = ThinkingTask(4, 5)
    numbers, additions = task.chains(600, generator_of(0))
    prompts, right = task.prompts(numbers, additions), task.answers(numbers)
    model = Scripted(task)
    for budget in range(7):
        thought = generate(model, task, prompts, budget)
        assert torch.equal(thought.used, additions.clamp(max=budget))
        solved = additions <= budget + 1
        assert torch.equal(thought.answers[solved], right[solved])
        forced = thought.written.tokens.eq(task.answer_token) & ~thought.written.chosen
        assert torch.equal(forced.any(1), additions >= min(budget, 4))  # where it is due, nobody chooses it
        accuracy = float((thought.answers == right).double().mean())
        low, high = budget_bounds(budget, task)
        assert low - 0.06 <= accuracy <= high + 0.06


def test_bounds_are_the_closed_form():
    task = ThinkingTask()
    for b in range(9):
        low, high = budget_bounds(b, task)
        assert low == pytest.approx(b / 8 + (1 - b / 8) / 5)
        later = min(b + 1, 8)
        assert high == pytest.approx(later / 8 + (1 - later / 8) / 5)
    assert budget_bounds(2, ThinkingTask(4, 5, 3)) == (0.2, pytest.approx(0.6))


def test_a_model_learns_short_chains_and_uses_its_budget():
    task = ThinkingTask(2, 2)

    def draw(count, generator):
        examples = task.examples(count, generator)
        return examples.tokens, examples.weights

    def trained():
        module = SelectedTokensModule(task.vocabulary, task.context, width=32, lr=5e-3, seed=0)
        fit(module, SelectedTokensData(draw, 64, 0), 150)
        return module.model

    model = trained()
    numbers, additions = task.chains(400, generator_of(5))
    thought = generate(model, task, task.prompts(numbers, additions), 2)
    assert float((thought.answers == task.answers(numbers)).double().mean()) > 0.95
    assert torch.equal(thought.used, additions)
    again = trained()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_only_selected_tokens_are_learned():
    module = SelectedTokensModule(6, 8, width=16, seed=0)
    tokens = torch.randint(6, (3, 8), generator=generator_of(0))
    weights = torch.zeros(3, 8)
    weights[0, 3] = weights[2, 5] = 1
    logs = module(tokens).log_softmax(-1)
    wanted = -(logs[0, 2, tokens[0, 3]] + logs[2, 4, tokens[2, 5]]) / 2
    torch.testing.assert_close(module.training_step((tokens, weights), 0), wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate(make(), ThinkingTask(), torch.zeros(1, 10).long(), -1), "budget: is -1; give 0 tokens"),
        (lambda: budget_bounds(-1, ThinkingTask()), "budget: is -1"),
        (lambda: ThinkingTask(2, 5, 3), "shortest, longest: are 3 and 2"),
        (lambda: ThinkingTask(modulus=11), "modulus: is 11; give 2 to 10"),
        (lambda: ThinkingTask().examples(2, generator_of(0), cut=1.5), "cut: is 1.5; give 0 to 1"),
        (lambda: Forced(1, -2), "after: is -2; give 0 or more"),
        (lambda: write(make(), torch.zeros(1, 2).long(), 0, 5), "limit: is 0; give 1 or more"),
        (lambda: write(make(), torch.zeros(1, 2).long(), 1, 5, temperature=0), "temperature: is 0"),
        (lambda: SelectedTokensData(lambda n, g: None, 0), "batch_size: is 0"),
    ],
)
def test_what_is_wrong_is_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
