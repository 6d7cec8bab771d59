"""What a trial of `sweep`, `tune` and `train` does on a worker: train a method and measure it on every environment."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from cluster.errors import InputError
from cluster.training.rank import Ended, Mailbox, Message, Place, RankTask
from cluster.trial import Scalar, Trial
from cluster.worker import Channel, Pruned, Setup, Tables, Task

if TYPE_CHECKING:
    from lightning_modules.data.environments import Dataset
    from lightning_modules.data.tensors import SplitDataset
    from lightning_modules.domain_generalization.method import Method
    from lightning_modules.dynamics.probe import ProbeRows
    from lightning_modules.fitting.keeping import LongRun
    from lightning_modules.user_modules import UserModule
    from lightning_modules.watching import MetricRow


Keep = Callable[[dict[str, Any]], None]
"""Takes a trained model, as a checkpoint of plain values and tensors."""


class ChannelWatch:
    """Lets a training report through a worker's channel.

    Args:
        channel: of the worker.
        trial_id: of the trial.
        wait: seconds that an evaluation waits for its answer at most; 0 goes on at once.
    """

    def __init__(self, channel: Channel, trial_id: str, wait: float) -> None:
        self._channel, self._trial_id, self._wait = channel, trial_id, wait
        self._unanswered: int | None = None

    def report(self, step: int, rows: Sequence[MetricRow]) -> None:
        """Send an evaluation."""
        self._channel.report(self._trial_id, step, rows)
        self._unanswered = step

    def stopped(self) -> bool:
        """Whether the trial is to end."""
        if self._wait and self._unanswered is not None:  # by now every member of a pack has reported
            self._channel.wait(self._trial_id, self._unanswered, self._wait)
        self._unanswered = None
        return self._channel.stopped(self._trial_id)


def model_path(run: str, trial_id: str) -> str:
    """Where a run keeps the weights of a trial."""
    return f"{run.rstrip('/')}/models/{trial_id}.ckpt"


class _Reporting:
    """What the tasks share: a channel to report through."""

    def __init__(self, wait: float) -> None:
        self._channel: Channel | None = None
        self._wait = wait

    def listen(self, channel: Channel) -> None:
        self._channel = channel

    def watch(self, trial: Trial) -> ChannelWatch | None:
        return None if self._channel is None else ChannelWatch(self._channel, trial.trial_id, self._wait)


def setup(
    threads: int,
    datasets: Mapping[str, Dataset],
    wait: float = 0.0,
    folder: str | None = None,
) -> Task:
    """Prepare a worker that trains methods: import torch and Lightning once, and remember the splits of the seeds in use.

    Args:
        threads: of torch.
        datasets: by identity.
        wait: see `ChannelWatch`.
        folder: where a person's own methods are imported from.
    """
    import torch

    from lightning_modules.domain_generalization.pack import Member, train_pack
    from lightning_modules.imports import use_folder
    from lightning_modules.watching import Stopped

    torch.set_num_threads(threads)
    if folder is not None:
        use_folder(folder)
    split = _splits(datasets)

    class Train(_Reporting):
        def __call__(self, trial: Trial) -> dict[str, list[Any]]:
            # A pack of one: on a CPU a trial then has the same numbers to the last bit whatever trains beside it.
            (result,) = self.pack([trial])
            if isinstance(result, Exception):
                raise result
            return result

        def pack(self, trials: Sequence[Trial]) -> list[dict[str, list[Any]] | Exception]:
            members = [
                Member(json.loads(t.hyperparameters), split(t.dataset, t.seed), t.held_out, t.stream, self.watch(t))
                for t in trials
            ]
            results = train_pack(trials[0].method, members, json.loads(trials[0].budget))
            return [_tables(result) for result in results]

        def long(self, trial: Trial, run: LongRun, keep: Keep) -> Tables:
            def take(_: int, weights: dict[str, torch.Tensor]) -> None:
                keep(_weights_of(trial, weights))

            split_dataset = split(trial.dataset, trial.seed)
            member = Member(json.loads(trial.hyperparameters), split_dataset, trial.held_out, trial.stream)
            (result,) = train_pack(trial.method, [member], json.loads(trial.budget), take, run)
            if isinstance(result, Exception):
                raise result
            return {"metrics": result}

    def _tables(result: list[MetricRow] | Exception) -> dict[str, list[Any]] | Exception:
        if isinstance(result, Stopped):
            return Pruned({"metrics": result.rows})
        return result if isinstance(result, Exception) else {"metrics": result}

    return Train(wait)


def setup_module(
    threads: int,
    module: UserModule,
    datasets: Mapping[str, Dataset],
    wait: float = 0.0,
) -> Task:
    """Prepare a worker that trains a person's own LightningModule.

    Args:
        threads: of torch.
        module: what is trained.
        datasets: by identity, of a module that trains on environments.
        wait: see `ChannelWatch`.
    """
    import torch

    from lightning_modules.watching import Stopped

    torch.set_num_threads(threads)
    split = _splits(datasets)

    class Train(_Reporting):
        def __call__(self, trial: Trial) -> dict[str, list[Any]]:
            data = split(trial.dataset, trial.seed) if module.environments else None
            values, budget = json.loads(trial.hyperparameters), json.loads(trial.budget)
            try:
                fitted = module.fit(values, budget, trial.stream, self.watch(trial), data, trial.held_out)
            except Stopped as stopped:
                raise Pruned({"metrics": stopped.rows}) from None
            return {"metrics": fitted.rows}

        def long(self, trial: Trial, run: LongRun, keep: Keep) -> Tables:
            data = split(trial.dataset, trial.seed) if module.environments else None
            values, budget = json.loads(trial.hyperparameters), json.loads(trial.budget)
            fitted = module.fit(values, budget, trial.stream, None, data, trial.held_out, run)
            keep(fitted.checkpoint())
            return {"metrics": fitted.rows}

    return Train(wait)


def _weights_of(trial: Trial, weights: dict[str, Any]) -> dict[str, Any]:
    """A method's trained network as a checkpoint of plain values and tensors."""
    about = {"method": trial.method, "dataset": trial.dataset, "hyperparameters": trial.hyperparameters}
    return {"state_dict": weights, "shiftlab": about}


class LongTask(Protocol):
    """A task that can also train at length: spread over workers, saved, paused and continued."""

    def long(self, trial: Trial, run: LongRun, keep: Keep) -> Tables:
        """Train; `keep` is given the trained weights."""


@dataclass(frozen=True)
class LongOptions:
    """How a long training is done on each of its workers.

    Args:
        save_every: steps between checkpoints.
        verify_every: steps between checks that workers compute the same; None: none.
        strategy: "ddp" or "fsdp".
        precision: Lightning's name for it.
        probes: that measure it, by name and options.
    """

    save_every: int
    verify_every: int | None = None
    strategy: str = "ddp"
    precision: str = "32-true"
    probes: tuple[str, ...] = ()


def setup_rank(base: Setup, options: LongOptions, *shared: Any) -> RankTask:
    """Prepare a worker that takes part in long trainings.

    Args:
        base: `setup` or `setup_module`.
        options: how it is done.
        *shared: what `base` takes.
    """
    import torch
    import torch.distributed as dist

    from lightning_modules.fitting.following import Corrupted, Paused
    from lightning_modules.fitting.keeping import LongRun, Saved
    from lightning_modules.fitting.spread import Spread

    task = cast(LongTask, base(*shared))

    class Follow:
        """Puts what a training says into the worker's mailbox."""

        def __init__(self, mailbox: Mailbox) -> None:
            self._mailbox = mailbox

        def log(self, step: int, values: Mapping[str, float]) -> None:
            self._mailbox.put(Message("log", step, dict(values)))

        def evaluated(self, step: int, rows: Sequence[MetricRow]) -> None:
            self._mailbox.put(Message("evaluation", step, list(rows)))

        def save(self, step: int, content: bytes, rows: Sequence[MetricRow]) -> None:
            self._mailbox.put(Message("checkpoint", step, (content, list(rows))))

        def verified(self, step: int) -> None:
            self._mailbox.put(Message("verified", step, None))

        def probed(self, rows: ProbeRows) -> None:
            self._mailbox.put(Message("probe", rows.step, (rows.probe, rows.series, rows.examples)))

        def pausing(self) -> bool:
            return self._mailbox.pausing

    def train(trial: Trial, place: Place, mailbox: Mailbox, checkpoint: bytes | None) -> Ended:
        spread = Spread(place.rank, place.world, place.address, place.port, options.strategy, options.precision)
        saved = Saved(checkpoint) if checkpoint is not None else None
        run = LongRun(spread, Follow(mailbox), options.save_every, saved, options.verify_every, options.probes)

        def keep(content: dict[str, Any]) -> None:
            if place.rank == 0:
                buffer = io.BytesIO()
                torch.save(content, buffer)
                mailbox.put(Message("model", 0, buffer.getvalue()))

        met = dist.is_initialized()  # another engine has brought the workers together
        try:
            return Ended("done", tables=task.long(trial, run, keep))
        except Paused as paused:
            return Ended("paused", paused.step)
        except Corrupted as found:
            return Ended("corrupted", found.mismatch.step, error=str(found), suspects=found.mismatch.suspects)
        finally:
            if dist.is_initialized() and not met:
                dist.destroy_process_group()

    return train


def _splits(datasets: Mapping[str, Dataset]) -> Callable[[str, int], SplitDataset]:
    """Split a dataset by a seed, remembering the splits in use."""
    from lightning_modules.data.tensors import split_dataset

    @lru_cache(maxsize=8)
    def split(identity: str, seed: int) -> SplitDataset:
        return split_dataset(datasets[identity], seed)

    return split


def complete(method: type[Method], name: str, values: Mapping[str, Any], network: str) -> dict[str, Scalar]:
    """Check hyperparameters and fill in the defaults, the dataset's network for "auto" among them.

    Args:
        method: the class.
        name: of the method.
        values: by name.
        network: the dataset's own.

    Raises:
        InputError: for an unknown name or a value of the wrong type or range.
    """
    from lightning_modules.hyperparameters import build

    full: dict[str, Scalar] = dataclasses.asdict(build(method.Hyperparameters, values, name))
    if full["network"] == "auto":
        full["network"] = network
    return full


def check_trainable(method: type[Method], name: str, network: str, dataset: Dataset, left: int) -> None:
    """Check that a method can train a network on what a held-out setting leaves of a dataset.

    Args:
        method: the class.
        name: of the method.
        network: linear, mlp, small-cnn or cnn.
        dataset: the data.
        left: number of environments that are trained on.

    Raises:
        InputError: naming the field and the mend, if it cannot.
    """
    from lightning_modules.domain_generalization.catalog import check_method_network
    from lightning_modules.networks import check_network

    check_network(network, dataset.input_shape)
    check_method_network(method, network)
    if left < method.minimum_environments:
        raise InputError(
            f"held_out: {name} trains on {method.minimum_environments} environments or more, a setting leaves "
            f"{left} of {dataset.name}; hold out fewer"
        )


def shape(trial: Trial) -> tuple[Any, ...] | None:
    """What trials must share to train as one pack; None for a trial that gains nothing by it."""
    from lightning_modules.domain_generalization.catalog import find_method
    from lightning_modules.networks import CONVOLUTIONAL

    values = json.loads(trial.hyperparameters)
    if values["network"] in CONVOLUTIONAL:  # its products are large enough alone, and many at once need much memory
        return None
    structural = ("batch_size", *find_method(trial.method).structural)
    kinds = tuple((k, v) for k, v in values.items() if k in structural or isinstance(v, str | bool))
    return trial.method, trial.dataset, len(trial.held_out), trial.budget, kinds
