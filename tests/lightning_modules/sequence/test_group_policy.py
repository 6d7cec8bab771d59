import json
from functools import partial

import numpy as np
import pytest
import torch

from lightning_modules.errors import InputError
from lightning_modules.sequence.draws import generator_of
from lightning_modules.sequence.group_policy import (
    GroupPolicyTrainer,
    differ,
    group_advantages,
    group_objective,
)
from lightning_modules.sequence.rollouts import (
    InThisProcess,
    RolloutItem,
    RolloutSettings,
    RolloutTask,
    items_of,
    weights_of,
)
from lightning_modules.sequence.transformer import Transformer, TransformerConfig
from lightning_modules.sequence.verifiers import VERIFIERS, Prompt, Spelling, read_prompts

LETTERS = "0123+=."
CONFIG = TransformerConfig(len(LETTERS), 16, layers=1, width=16, heads=2, init_std=0.2)


def policy(seed=0):
    return Transformer(CONFIG, torch.Generator().manual_seed(seed))


def settings(**options):
    return RolloutSettings(
        **{"make": partial(Transformer, CONFIG), "letters": LETTERS, "limit": 4, "group": 6} | options
    )


def starts_with(prompt, answer, expected):
    return float(answer.startswith(expected))


def trainer_of(model, **options):
    made = settings(verifiers={**VERIFIERS, "starts": starts_with}, **options.pop("settings", {}))
    return GroupPolicyTrainer(model, InThisProcess(RolloutTask(made)), made, **options)


def test_advantages_are_centred_scaled_by_the_population_deviation_and_zero_where_all_are_equal():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0.3, 0.3, 0.3, 0.3], [1, 1, 1, 1]])
    found = group_advantages(rewards)
    told = rewards.numpy()
    wanted = (told - told.mean(1, keepdims=True)) / (told.std(1, keepdims=True) + 1e-6)
    assert found[:2].numpy() == pytest.approx(wanted[:2], abs=1e-6)
    assert float(found[0, 0]) == pytest.approx(3**0.5, abs=1e-5)
    assert torch.equal(found[2:], torch.zeros(2, 4))
    assert float(found.mean(1).abs().max()) < 1e-6
    assert differ(rewards).tolist() == [True, True, False, False]


def example(seed=0, answers=6, length=5):
    generator = generator_of(seed)
    new, old, start = (-torch.rand(answers, length, generator=generator, dtype=torch.float64) * 2 for _ in range(3))
    weights = (torch.rand(answers, length, generator=generator) < 0.7).double()
    weights[:, 0] = 1
    advantages = torch.randn(answers, generator=generator, dtype=torch.float64)
    return new, old, start, weights, advantages


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_the_objective_is_its_equation_in_loops(kl_weight):
    new, old, start, weights, advantages = example()
    counted = torch.tensor([True, True, False, True, False, True])
    total = []
    for b in range(6):
        if not counted[b]:
            continue
        tokens = []
        for t in range(5):
            if weights[b, t]:
                rho, gain = np.exp(float(new[b, t] - old[b, t])), float(advantages[b])
                value = min(rho * gain, min(max(rho, 0.8), 1.2) * gain)
                away = float(start[b, t] - new[b, t])
                tokens.append(value - kl_weight * (np.exp(away) - away - 1))
        total.append(np.mean(tokens))
    found = group_objective(new, old, weights, advantages, counted, 0.2, start, kl_weight)
    assert float(found) == pytest.approx(-np.mean(total), abs=1e-12)


def test_clipped_tokens_have_no_gradient_where_the_clip_holds_them_back():
    old = torch.zeros(4, 1, dtype=torch.float64)
    new = torch.tensor([[0.5], [-0.5], [0.5], [-0.5]], dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    group_objective(new, old, torch.ones(4, 1), gains, torch.ones(4, dtype=torch.bool)).backward()
    assert (new.grad[:, 0] != 0).tolist() == [False, True, True, False]
    assert float(new.grad[1, 0]) == pytest.approx(-np.exp(-0.5) / 4)


def test_at_the_sampling_policy_the_gradient_is_the_policy_gradient_and_equal_groups_have_none():
    model = policy().double()
    trainer = trainer_of(model, prompts_at_once=2, settings={"group": 24})
    prompts = [Prompt("1+2", "starts", "1"), Prompt("3+3", "starts", ""), Prompt("2+2", "starts", "2")]
    found = trainer.rollouts(prompts)
    assert differ(found.rewards).tolist() == [True, False, True]
    gains = group_advantages(found.rewards).flatten().double()
    each = differ(found.rewards).repeat_interleave(24)
    new = trainer.log_probabilities(found.tokens)
    # What was sampled in float32 from these weights is what they say now.
    assert float(((new - found.log_probabilities) * found.weights).abs().max()) < 1e-4
    loss = group_objective(new, new.detach(), found.weights, gains, each)
    plain = -((new * found.weights).sum(1) / found.weights.sum(1) * gains)[each].mean()
    slopes = [torch.autograd.grad(value, list(model.parameters()), retain_graph=True) for value in (loss, plain)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    equal = group_objective(new, new.detach(), found.weights, gains, torch.zeros_like(each))
    assert not any(float(s.abs().max()) for s in torch.autograd.grad(equal, list(model.parameters())))


def test_an_update_without_differences_leaves_the_policy_alone():
    model = policy()
    trainer = trainer_of(model)
    trainer.update([Prompt("1+2", "starts", "1")])  # the optimiser has moments now
    before = [p.clone() for p in model.parameters()]
    made = trainer.update([Prompt("1+1", "starts", "")])
    assert (made.reward, made.informative, made.loss) == (1.0, 0.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_rewards_rise_and_repeat_exactly():
    def learned(seed, kl_weight=0.0, steps=25):
        model = policy()
        trainer = trainer_of(model, lr=1e-2, seed=seed, kl_weight=kl_weight)
        prompts = [Prompt(f"{a}+{b}", "starts", "3") for a in range(4) for b in range(2)]
        return [trainer.update(prompts).reward for _ in range(steps)], model

    rewards, model = learned(0)
    assert rewards[0] < 0.4
    assert np.mean(rewards[-5:]) > 0.9
    again, same = learned(0)
    assert rewards == again
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert learned(1)[0] != rewards
    held, _ = learned(0, kl_weight=10.0)
    assert np.mean(held[-5:]) < 0.7


def test_rollouts_weigh_what_the_policy_chose_and_nothing_else():
    made = settings(verifiers={"starts": starts_with}, forced=("=", 1), limit=4)
    item = RolloutItem((Prompt("1+2", "starts", "0"), Prompt("3+0", "starts", "1")), (4, 5))
    task = RolloutTask(made)
    found, again = (task(weights_of(policy()), item) for _ in range(2))
    assert torch.equal(found.tokens, again.tokens)
    other = task(weights_of(policy()), RolloutItem(item.prompts, (4, 6)))
    assert not torch.equal(found.tokens, other.tokens)
    equal_sign, stop = LETTERS.index("="), LETTERS.index(".")
    for row, (tokens, weights) in enumerate(zip(found.tokens.tolist(), found.weights.tolist(), strict=True)):
        assert weights[:3] == [0, 0, 0]
        answer = tokens[3:]
        end = answer.index(stop) if stop in answer else len(answer) - 1
        wanted = [float(place <= end) for place in range(len(answer))]
        if answer[0] not in (equal_sign, stop):
            assert answer[1] == equal_sign
            wanted[1] = 0.0
        assert weights[3:] == wanted
        text = "".join(LETTERS[token] for token in answer).split(".")[0]
        prompt = item.prompts[row // 6]
        assert found.rewards[row // 6, row % 6] == starts_with("", text, prompt.expected)
    assert not found.log_probabilities[found.weights == 0].any()
    assert (found.log_probabilities[found.weights == 1] < 0).all()


def test_items_have_prompts_of_one_length_and_lose_none():
    prompts = [Prompt("1" * length, "exact", str(n)) for n, length in enumerate((2, 5, 2, 2, 3, 5))]
    items = items_of(prompts, 2, 7, 8)
    assert [item.numbers for item in items] == [(7, 8, n) for n in range(4)]
    assert [[prompt.expected for prompt in item.prompts] for item in items] == [["0", "2"], ["3"], ["4"], ["1", "5"]]


def test_prompts_of_several_lengths_are_learned_together():
    made = trainer_of(policy()).update([Prompt("1", "starts", "1"), Prompt("1+1+1", "starts", "2")])
    assert 0 <= made.reward <= 1
    assert made.length <= 4


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "expected", "reward"),
    [
        ("exact", "", " 4 ", "4", 1),
        ("exact", "", "=4", "4", 0),
        ("final", "", "12=4", "4", 1),
        ("final", "", "4", "4", 0),
        ("final", "", "4=", "4", 0),
        ("final", "", "=4=3", "4", 0),
        ("number", "", "it is 4.0", "4", 1),
        ("number", "", "4 or 5", "4", 0),
        ("number", "", "-4", "4", 0),
        ("number", "", "none", "4", 0),
        ("digit_sum", "314?", "43=3", "5", 1),
        ("digit_sum", "314?", "43=8", "5", 0),
        ("digit_sum", "314__?", "=8", "10", 1),
    ],
)
def test_verifiers(name, prompt, answer, expected, reward):
    assert VERIFIERS[name](prompt, answer, expected) == reward


def test_a_file_of_prompts_is_read(tmp_path):
    lines = [
        {"prompt": "1+2", "checker": "final", "expected": "3"},
        {"prompt": "33", "checker": "digit_sum", "expected": "4"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    found = read_prompts(file, Spelling(LETTERS))
    assert found == [Prompt("1+2", "final", "3"), Prompt("33", "digit_sum", "4")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "1"', "line 2: is no JSON"),
        ('["1"]', "line 2: lacks a prompt or a checker"),
        ('{"prompt": "1"}', "line 2: lacks a prompt or a checker"),
        ('{"prompt": "1", "checker": "final", "answer": "1"}', "line 2: has the unknown field 'answer'"),
        ('{"prompt": 1, "checker": "final"}', "line 2: prompt is 1; put it between quotes"),
        ('{"prompt": "1", "checker": "best"}', "line 2: unknown checker 'best'; choose from exact, final"),
        ('{"prompt": "", "checker": "final"}', "line 2: prompt is empty"),
        ('{"prompt": "1a", "checker": "final"}', "line 2: text: has the letter 'a'"),
        ('{"prompt": "1", "checker": "number", "expected": "x"}', "line 2: number cannot use the expected 'x'"),
        ('{"prompt": "1", "checker": "digit_sum", "expected": "0"}', "line 2: digit_sum cannot use the expected '0'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1", "checker": "final", "expected": "1"}\n' + line)
    with pytest.raises(InputError, match=message) as error:
        read_prompts(file, Spelling(LETTERS))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: read_prompts(d / "none", Spelling("a")), "none: cannot be read"),
        (lambda d: (d / "e").write_text("\n") and read_prompts(d / "e", Spelling("a")), "e: has no prompts"),
        (lambda d: (d / "e").write_bytes(b"\xff") and read_prompts(d / "e", Spelling("a")), "e: is not UTF-8"),
        (lambda _: settings(group=1), "group: is 1; give 2 answers or more"),
        (lambda _: settings(stop="x"), "stop: 'x' is none of the letters"),
        (lambda _: settings(forced=("x", 1)), "forced: 'x' is none of the letters"),
        (lambda _: group_advantages(torch.zeros(3, 1)), "rewards: have shape"),
        (lambda _: trainer_of(policy(), clip=1.0), "clip: is 1.0; give a number between 0 and 1"),
        (lambda _: trainer_of(policy(), passes=0), "passes: is 0"),
        (lambda _: trainer_of(policy()).update([]), "prompts: there are none"),
        (lambda _: Spelling("aa"), "letters: are 'aa'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, call, message):
    with pytest.raises(InputError, match=message):
        call(tmp_path)
