"""A real Ray of several nodes on this machine, for tests that lose some of them.

It lives in a process of its own, so that the test's own Ray is undisturbed, and leaves no process behind:

    with Nodes(2) as nodes:
        subprocess.run([..., f"--address={nodes.address}"], env=nodes.environment)
        nodes.kill_node(0)
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
_MARK = "SHIFTLAB_TEST_NODES"
_MEMORY = 80 * 2**20


class Nodes:
    """A head without CPUs, and nodes of one CPU each, with tuned health checks.

    Args:
        count: nodes beside the head.
        cpus: of each.
    """

    def __init__(self, count, cpus=1):
        self._count, self._cpus = count, cpus

    def __enter__(self):
        self._mark = secrets.token_hex(8)
        self._folder = tempfile.mkdtemp(prefix="nd", dir="/tmp")  # unix sockets need short paths
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = clean | {
            _MARK: self._mark,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        self._log = open(Path(self._folder, "log"), "w")  # noqa: SIM115 - closed with the cluster
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.nodes", self._folder, str(self._count), str(self._cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=self.environment,
            text=True,
            start_new_session=True,
        )
        started = self._answer()
        self.address, self._head, self.nodes = started["address"], started["head"], dict(enumerate(started["nodes"]))
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        deadline = time.monotonic() + 20
        while (left := [p for p in psutil.process_iter() if self._is_ours(p)]) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.1)
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_node(self):
        """Add a node; returns its number."""
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self.nodes[len(self.nodes)] = self._answer()["node"]
        return len(self.nodes) - 1

    def kill_node(self, number):
        """Kill a node as if its plug were pulled: the raylet and what it runs."""
        raylet = self.nodes[number]
        for process in [*self._children(raylet), psutil.Process(raylet)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_raylet(self, number):
        """Kill a node's raylet alone; what it ran finds out by itself."""
        os.kill(self.nodes[number], signal.SIGKILL)

    def freeze_node(self, number):
        """Stop a node where it is, as a host that hangs."""
        for process in [psutil.Process(self.nodes[number]), *self._children(self.nodes[number])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def drain_node(self, number):
        """Announce that a node will be taken away, as a cloud's notice does."""
        words = psutil.Process(self.nodes[number]).cmdline()
        node = next(word.split("=")[1] for word in words if word.startswith("--node_id="))
        ray = Path(sys.executable).with_name("ray")
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=120"]
        command = [ray, "drain-node", f"--address={self.address}", f"--node-id={node}", *reason]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def kill_head(self):
        """Kill the head: its raylet and the global control store. Nothing of the cluster survives that."""
        for pid in self._head:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def workers(self):
        """Processes that run our workers, by node."""
        return {
            number: [p for p in self._children(raylet) if self._name(p).startswith(("ray::Worker", "ray::Rank"))]
            for number, raylet in self.nodes.items()
            if psutil.pid_exists(raylet)
        }

    def kill_worker(self, generator=None):
        """Kill a worker's process with SIGKILL, any of them; returns whether there was one."""
        found = [process for processes in self.workers().values() for process in processes]
        if not found:
            return False
        (generator or random.Random(0)).choice(found).kill()
        return True

    @staticmethod
    def _children(raylet):
        try:
            return psutil.Process(raylet).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    @staticmethod
    def _name(process):
        try:
            return " ".join(process.cmdline())
        except psutil.Error:
            return ""

    def _is_ours(self, process):
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == self._mark
        except psutil.Error:
            return False

    def _answer(self):
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the cluster did not start: {Path(self._folder, 'log').read_text()[-3000:]}")
        return json.loads(line)


def _serve(folder, count, cpus):
    """Hold the cluster: Ray's own class starts nodes in the main thread only, and prints a lot."""
    from ray.cluster_utils import Cluster

    def say(**values):
        print(json.dumps(values), file=answers, flush=True)

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": _MEMORY,
        "temp_dir": folder,
        "_system_config": HEALTH_CHECKS,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)

    def pid(node, kind):
        return node.all_processes[kind][0].process.pid

    def add():
        return pid(cluster.add_node(num_cpus=int(cpus), object_store_memory=_MEMORY), "raylet")

    nodes = [add() for _ in range(int(count))]
    say(
        address=cluster.address,
        head=[pid(cluster.head_node, kind) for kind in ("gcs_server", "raylet")],
        nodes=nodes,
    )
    for line in sys.stdin:
        if line.strip() == "add":
            say(node=add())
    cluster.shutdown()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
