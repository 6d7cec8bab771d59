"""What the gang's tests train: a sum that grows by what each worker adds at every step, in plain Python."""

import json
import os
import time
from pathlib import Path

from cluster.training.rank import Ended, Message


def setup_counting(folder):
    """Count to the budget's steps; rank 0 saves every fifth. The workers meet in files, as others do by sockets.

    A worker of a training whose process finds FOLDER/die-PID dies; one that finds FOLDER/fail raises.
    """
    folder = Path(folder)

    def train(trial, place, mailbox, checkpoint):
        (folder / f"pid-{os.getpid()}").touch()
        budget = json.loads(trial.budget)
        state = json.loads(checkpoint) if checkpoint is not None else {"step": 0, "worlds": []}
        state["worlds"].append(place.world)
        marks = folder / f"round-{place.port}"
        marks.mkdir(exist_ok=True)
        while state["step"] < budget["steps"]:
            time.sleep(budget["pause"])
            if (folder / f"die-{os.getpid()}").exists():
                os._exit(1)
            if (folder / "fail").exists() and place.rank == place.world - 1:
                raise ValueError("planned failure")
            state["step"] += 1
            (marks / f"{state['step']}-{place.rank}").touch()
            deadline = time.monotonic() + 60
            while any(not (marks / f"{state['step']}-{rank}").exists() for rank in range(place.world)):
                if (folder / "fail").exists() or time.monotonic() > deadline:
                    raise RuntimeError("gloo: connection closed by peer")
                if list(folder.glob("die-*")):
                    raise RuntimeError("gloo: connection closed by peer")
                time.sleep(0.002)
            if place.rank == 0:
                mailbox.put(Message("log", state["step"], {"world": place.world}))
                pausing = mailbox.pausing
                if pausing or state["step"] % 5 == 0:
                    mailbox.put(Message("checkpoint", state["step"], (json.dumps(state).encode(), [])))
                (marks / f"pause-{state['step']}").write_text("yes" if pausing else "no")
            while not (marks / f"pause-{state['step']}").exists():
                time.sleep(0.002)
            if (marks / f"pause-{state['step']}").read_text() == "yes":
                return Ended("paused", state["step"])
        rows = [(step, f"worlds {state['worlds']}", "out", "value", float(step)) for step in [state["step"]]]
        return Ended("done", state["step"], {"metrics": rows})

    return train


def setup_accusing(suspects):
    """Find at once that some workers are to blame."""
    return lambda trial, place, mailbox, checkpoint: Ended(
        "corrupted", 7, error="a gradient differed", suspects=suspects
    )


def setup_broken(*shared):
    raise RuntimeError("no such library here")
