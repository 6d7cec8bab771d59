"""The same training by Ray Train V2: it starts, restarts and resizes the workers, this module speaks with them.

What a training says goes through a small actor beside the driver, which also keeps the last checkpoint for workers that
start again. Ray Train's own checkpoints are not used: the run keeps ours, whichever engine trains.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.training.gang import GangSettings, Handler
from cluster.training.rank import Ended, Mailbox, Message, Place, RankSetup, attempt
from cluster.trial import Trial

if TYPE_CHECKING:
    from types import ModuleType

_TAKE_S = 1.0
_RESIZE_S = 10.0
_ORDERED = "ordered"
# Measured: with Ray's default of 60 s a lost node costs 71 s until the training goes on with fewer workers.
_START_TIMEOUT_S = "10"


class _Post:
    """Between the workers and the driver; an actor."""

    def __init__(self, checkpoint: tuple[int, bytes] | None) -> None:
        self._mailbox = Mailbox()
        self._checkpoint = checkpoint

    def put(self, message: Message) -> None:
        if message.kind == "checkpoint":
            self._checkpoint = (message.step, message.content[0])
        self._mailbox.put(message)

    def take(self, seconds: float) -> list[Message]:
        return self._mailbox.take(seconds)

    def pause(self) -> None:
        self._mailbox.pause()

    def pausing(self) -> bool:
        return self._mailbox.pausing

    def checkpoint(self) -> bytes | None:
        return None if self._checkpoint is None else self._checkpoint[1]


def _put(post: Any, message: Message) -> Any:
    return post.put.options(concurrency_group=_ORDERED).remote(message)


class _RemoteMailbox(Mailbox):
    """A worker's mailbox whose other end is the post."""

    def __init__(self, ray: ModuleType, post: Any) -> None:
        super().__init__(lambda message: _put(post, message), lambda: bool(ray.get(post.pausing.remote())))


def _work(config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker."""
    import ray
    import ray.train

    context = ray.train.get_context()
    rank, world, post = context.get_world_rank(), context.get_world_size(), config["post"]
    setup, shared = ray.get(config["setup"]), ray.get(list(config["shared"]))
    if rank == 0:
        ray.get(_put(post, Message("joined", 0, world)))
    checkpoint = ray.get(post.checkpoint.remote())
    ended = attempt(setup(*shared), config["trial"], Place(rank, world), _RemoteMailbox(ray, post), checkpoint)
    if ended.kind == "cut":
        raise RuntimeError(f"a worker was lost: {ended.error}")  # Ray Train starts again
    if rank == 0 or ended.kind == "failed":
        ray.get(_put(post, Message("ended", ended.step, ended)))


class RayTrain:
    """Trains by Ray Train; the same face as `Gang`. Nothing is warm: each training starts its workers.

    Args:
        ray: the connected `ray` module.
        setup: builds each worker's task.
        shared: what `setup` takes, put once into the object store.
        settings: who trains.
    """

    def __init__(self, ray: ModuleType, setup: RankSetup, shared: Sequence[Any], settings: GangSettings) -> None:
        self._ray, self._settings = ray, settings
        self._setup = ray.put(setup)
        self._shared = [ray.put(item) for item in shared]
        self.nodes, self.devices = "", ""

    def close(self) -> None:
        """Nothing stays behind."""

    def train(self, trial: Trial, handler: Handler, stop: Callable[[], bool]) -> Ended:
        """Train until the end, a failure of the training's own, or a pause that was asked for; as `Gang.train`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=True)
        actor = self._ray.remote(
            num_cpus=0, max_concurrency=4, concurrency_groups={_ORDERED: 1}, scheduling_strategy=here
        )(_Post)
        post = actor.remote(handler.checkpoint())
        failures: list[BaseException] = []
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(trial, post, folder)

            def fit() -> None:
                try:
                    trainer.fit()
                except BaseException as error:  # told to the one who waits
                    failures.append(error)

            thread = threading.Thread(target=fit, daemon=True)
            thread.start()
            try:
                ended = self._follow(post, handler, stop, thread)
            finally:
                thread.join(self._settings.grace)
                self._ray.kill(post)
        if ended is not None:
            return ended
        return Ended("failed", error=f"RayTrainError: {failures[0] if failures else 'it ended without a word'}")

    def _follow(self, post: Any, handler: Handler, stop: Callable[[], bool], thread: threading.Thread) -> Ended | None:
        """Hear what the workers say until rank 0's end, or until Ray Train gave up."""
        workers, told, last_step, asked_at = 0, False, 0, 0.0
        while True:
            alive = thread.is_alive()
            messages = self._ray.get(post.take.remote(_TAKE_S))
            for message in messages:
                if message.kind == "ended":
                    ended: Ended = message.content
                    return ended
                if message.kind == "joined":
                    if workers and message.content != workers:
                        handler.event("resized", last_step, "", f"{workers} to {message.content} workers")
                    elif workers:
                        handler.event("worker_lost", last_step, "", "Ray Train has started the workers again")
                    workers = message.content
                    continue
                last_step = max(last_step, message.step)
                handler.hear(message, workers)
            if not messages and not alive:
                return None
            if not workers:
                handler.waiting(0, self._settings.workers)
            if stop():
                if not told:
                    post.pause.remote()
                    told, asked_at = True, time.monotonic()
                if time.monotonic() - asked_at > self._settings.grace:
                    return Ended("paused", last_step)

    def _trainer(self, trial: Trial, post: Any, folder: str) -> Any:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _START_TIMEOUT_S)
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        scaling: Any = ScalingConfig  # its stubs are those of the version before
        s = self._settings
        elastic = s.min_workers < s.workers
        resources = {"CPU": s.cpus_per_worker} | ({"GPU": s.gpus_per_worker} if s.gpus_per_worker else {})
        return TorchTrainer(
            _work,
            train_loop_config={"trial": trial, "post": post, "setup": self._setup, "shared": self._shared},
            scaling_config=scaling(
                num_workers=(s.min_workers, s.workers) if elastic else s.workers,
                use_gpu=bool(s.gpus_per_worker),
                resources_per_worker=resources,
                elastic_resize_monitor_interval_s=_RESIZE_S,
            ),
            run_config=RunConfig(
                name=f"{trial.trial_id}-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=-1),
            ),
        )
