"""Rollouts on real Ray actors: who answers, and whether one dies, is no part of a result."""

import json
import os
import signal
from functools import partial

import pytest
import torch

from cluster.crew import Crew
from cluster.errors import InputError
from jobs.rollouts import improve, rollout_crew, shuffled
from lightning_modules.sequence.group_policy import GroupPolicyTrainer
from lightning_modules.sequence.rollouts import RolloutSettings, RolloutTask
from lightning_modules.sequence.transformer import Transformer, TransformerConfig
from lightning_modules.sequence.verifiers import Prompt, Spelling, read_prompts

LETTERS = "0123+=."
CONFIG = TransformerConfig(len(LETTERS), 16, layers=1, width=16, heads=2, init_std=0.2)
SETTINGS = RolloutSettings(partial(Transformer, CONFIG), LETTERS, limit=4, group=4)


class DiesOnce(RolloutTask):
    """Kills its own process in the middle of an update, once in all."""

    def __init__(self, settings, mark, at):
        super().__init__(settings)
        self.mark, self.at = mark, at

    def __call__(self, common, item):
        if item.numbers[1:] == self.at and not os.path.exists(self.mark):
            with open(self.mark, "w") as file:
                file.write(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(common, item)


class Recorded:
    def __init__(self, crew):
        self.crew, self.streams = crew, []

    def run(self, common, items):
        found = self.crew.run(common, items)
        self.streams += [(part.tokens, part.log_probabilities, part.rewards) for part in found]
        return found


def train(crew, updates=4, seed=3):
    """Streams of answers, rewards and final weights of a small training."""
    policy = Transformer(CONFIG, torch.Generator().manual_seed(0))
    recorded = Recorded(crew)
    trainer = GroupPolicyTrainer(policy, recorded, SETTINGS, lr=1e-2, prompts_at_once=2, seed=seed)
    prompts = [Prompt(f"{a}+{b}", "digit_sum", "4") for a in range(4) for b in range(4)]
    made = improve(trainer, shuffled(prompts, 6, 1), updates)
    return recorded.streams, made, list(policy.parameters())


def same(one, other):
    streams = all(torch.equal(a, b) for x, y in zip(one[0], other[0], strict=True) for a, b in zip(x, y, strict=True))
    return streams and one[1] == other[1] and all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))


def test_neither_the_number_of_workers_nor_the_death_of_one_changes_a_bit(ray_session, tmp_path):
    with rollout_crew(SETTINGS, in_process=True) as crew:
        assert crew.in_process
        alone = train(crew)
        assert not same(train(crew, seed=4), alone)
    assert any(update.informative > 0 for update in alone[1])
    mark = tmp_path / "died"
    with Crew(DiesOnce, [SETTINGS, str(mark), (2, 1)], workers=2) as crew:
        assert not crew.in_process
        first = crew.members
        assert same(train(crew), alone)  # and one dies in the third update
        assert int(mark.read_text()) != os.getpid()
        assert len(set(crew.members) & set(first)) == 1
        assert same(train(crew), alone)  # two workers who live
        crew.lose(crew.members[0])
        assert same(train(crew), alone)  # one


def test_a_crew_of_rollouts_uses_the_ray_that_is_there(ray_session):
    with rollout_crew(SETTINGS, 1) as crew:
        assert not crew.in_process
        policy = Transformer(CONFIG, torch.Generator().manual_seed(0))
        trainer = GroupPolicyTrainer(policy, crew, SETTINGS, seed=1)
        assert len(improve(trainer, shuffled([Prompt("1+2", "final", "3")], 1), 2)) == 2


def test_a_persons_own_prompts_are_learned_from_their_file(tmp_path):
    file = tmp_path / "sums.jsonl"
    lines = [{"prompt": f"{a}+{b}", "checker": "final", "expected": "2"} for a in range(4) for b in range(3)]
    file.write_text("\n".join(map(json.dumps, lines)))
    prompts = read_prompts(file, Spelling(LETTERS))
    policy = Transformer(CONFIG, torch.Generator().manual_seed(0))
    with rollout_crew(SETTINGS, in_process=True) as crew:
        trainer = GroupPolicyTrainer(policy, crew, SETTINGS, lr=1e-2, seed=0)
        seen = []
        made = improve(trainer, shuffled(prompts, 12), 60, lambda number, update: seen.append((number, update)))
    assert [number for number, _ in seen] == list(range(60))
    assert made[0].reward < 0.3
    assert made[-1].reward > 0.8


def test_prompts_come_once_a_round():
    prompts = [Prompt(str(n), "exact") for n in range(7)]
    ask = shuffled(prompts, 3, seed=1)
    for start in (0, 2, 4):
        asked = [*ask(start), *ask(start + 1)]
        assert len({prompt.text for prompt in asked}) == 6
    assert ask(0) == shuffled(prompts, 3, seed=1)(0) != ask(2)
    assert sorted(prompt.text for prompt in shuffled(prompts, 50)(4)) == sorted(prompt.text for prompt in prompts)
    with pytest.raises(InputError, match="prompts, at_once: 0 prompts, 3 an update"):
        shuffled([], 3)
