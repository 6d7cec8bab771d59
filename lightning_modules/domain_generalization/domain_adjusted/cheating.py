"""The cheating experiment: are a network's features good enough for a domain it never saw, given the right last layer?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.data.environments import Dataset
from lightning_modules.data.splits import split_environment
from lightning_modules.domain_generalization.domain_adjusted.heads import LogisticHead, OracleHead
from lightning_modules.errors import InputError
from lightning_modules.networks import Network

Backbone = Callable[[torch.Generator], Network]
"""Makes a network with a featurizer and a classifier, initialised from the generator alone."""

ARMS = ("head", "source_refit", "cheat_head", "cheat_random_features", "cheat_all")
"""Arms of the experiment, see `CheatingExperiment.arms`."""


class CheatingExperiment:
    """Retrain nothing, the last layer or the whole network, without and with the target's labelled training examples.

    Networks train by Adam on pooled mini-batches (ERM), features come in eval mode, heads are `LogisticHead`. All arms
    are scored on target examples that none of them saw. Source: arXiv 2202.06856; the last-layer and whole-network arms
    are the paper's, random features stand for its pretrained ones.

    Args:
        backbone: makes the network.
        dataset: source environments and the target; each is split 80/20 by the seed (or as the data say).
        target: name of the target environment.
        seed: of splits, initial weights and batches.
        epochs: passes over the training examples.
        batch_size: examples an update.
        learning_rate: of Adam.
        l2: ridge of the retrained heads.

    Raises:
        InputError: the dataset has no such target.
    """

    def __init__(
        self,
        backbone: Backbone,
        dataset: Dataset,
        target: str,
        seed: int = 0,
        epochs: int = 20,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        l2: float = 1e-3,
    ) -> None:
        if target not in dataset.environment_names:
            raise InputError(f"target: {dataset.name} has no {target!r}; it has {', '.join(dataset.environment_names)}")
        if epochs < 1 or batch_size < 1:
            raise InputError("epochs and batch_size: give 1 or more")
        self.backbone, self.dataset, self.target, self.seed = backbone, dataset, target, seed
        self.epochs, self.batch_size, self.learning_rate, self.l2 = epochs, batch_size, learning_rate, l2
        splits = [split_environment(e, seed, i) for i, e in enumerate(dataset.environments)]
        self._in = {e.name: rows for e, (rows, _) in zip(dataset.environments, splits, strict=True)}
        self._out = {e.name: rows for e, (_, rows) in zip(dataset.environments, splits, strict=True)}
        self._environments = {e.name: e for e in dataset.environments}
        self.sources = [name for name in dataset.environment_names if name != target]

    def train(self, environments: Sequence[str], stream: int = 0) -> Network:
        """Train a network on the "in" splits of some environments; returns it in eval mode."""
        network = self.backbone(_generator(self.seed, 0))
        images, labels, _ = self._gather(environments, self._in)
        inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
        order = _generator(self.seed, 1 + stream)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        network.train()
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(inputs), generator=order), self.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(network(inputs[rows])[1], targets[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return network.eval()

    def features(
        self, network: Network, environments: Sequence[str], part: str = "in"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frozen features of environments: x [n, d] float32, labels [n], environment names [n].

        Args:
            network: whose featurizer to use.
            environments: names.
            part: split, "in" or "out".
        """
        images, labels, names = self._gather(environments, self._in if part == "in" else self._out)
        return _featurize(network.featurizer, torch.from_numpy(images)).numpy(), labels, names

    def arms(self, network: Network | None = None) -> dict[str, float]:
        """Accuracy of every arm on the target's "out" split.

        head: the source-trained network as it is. source_refit: its last layer retrained on the sources. cheat_head:
        its last layer retrained on sources and target. cheat_random_features: a last layer trained so on the untrained
        network's features. cheat_all: the whole network trained on sources and target.

        Args:
            network: the source-trained network where there is one already; else it is trained here.
        """
        network = network or self.train(self.sources)
        untrained = self.backbone(_generator(self.seed, 0)).eval()
        everything = self.train([*self.sources, self.target], stream=1)
        arms = {"head": self._network_accuracy(network)}
        for name, base, head, environments in (
            ("source_refit", network, LogisticHead(self.l2), self.sources),
            ("cheat_head", network, OracleHead(self.l2), [*self.sources, self.target]),
            ("cheat_random_features", untrained, OracleHead(self.l2), [*self.sources, self.target]),
        ):
            head.fit(*self.features(base, environments))
            x, y, _ = self.features(base, [self.target], "out")
            arms[name] = head.score(x, y)
        arms["cheat_all"] = self._network_accuracy(everything)
        return {name: arms[name] for name in ARMS}

    @torch.no_grad()
    def _network_accuracy(self, network: Network) -> float:
        images, labels, _ = self._gather([self.target], self._out)
        return float((network(torch.from_numpy(images))[1].argmax(1).numpy() == labels).mean())

    def _gather(self, names: Sequence[str], rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = [self._environments[name] for name in names]
        images = np.concatenate([e.inputs[rows[e.name]] for e in chosen])
        labels = np.concatenate([e.labels[rows[e.name]] for e in chosen])
        return images, labels, np.repeat(names, [len(rows[e.name]) for e in chosen])


@torch.no_grad()
def _featurize(featurizer: nn.Module, inputs: Tensor, batch_size: int = 1024) -> Tensor:
    inputs = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
    return torch.cat([featurizer(batch) for batch in torch.split(inputs, batch_size)])


def _generator(seed: int, stream: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
