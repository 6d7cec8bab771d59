"""A real Ray head with a real autoscaler, whose cloud is this machine: `from tests.cluster.autoscaler import autoscaled`.

Ray's own AutoscalingCluster reads a file that its wheel does not ship; its node provider works when it is given as an
external one.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.jobs.ray_head import _free_ports, _stop, _wait_for, clean_environment

_HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
_MARK = "SHIFTLAB_TEST_HEAD"
_COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
IDLE_S = 6


@dataclass(frozen=True)
class Autoscaled:
    """A running head; `address` is HOST:PORT, `environment` what a client process needs."""

    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def autoscaled():
    folder = Path(tempfile.mkdtemp(prefix="as", dir="/tmp"))
    mark = secrets.token_hex(8)
    port, dashboard, agent, client = _free_ports(4)
    # The provider tells nodes apart by their address, which on one machine has to be the machine's own.
    host = subprocess.run(
        [sys.executable, "-c", "import ray; print(ray.util.get_node_ip_address())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[-1]
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
        "gpu": {"resources": {"CPU": 1, "GPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    config = {
        "cluster_name": "test",
        "max_workers": 4,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"{host}:{port}",
            "head_node_id": _HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": kinds,
        **{f"{part}_commands": [] for part in _COMMANDS},
        **{name: {} for name in ("file_mounts", "docker")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }
    (folder / "autoscaler.yaml").write_text(yaml.safe_dump(config))
    environment = clean_environment() | {
        _MARK: mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
        "RAY_TMPDIR": str(folder),
    }
    options = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "temp-dir": folder,
        "num-cpus": 0,
        "object-store-memory": 100_000_000,
        "autoscaling-config": folder / "autoscaler.yaml",
    }
    log = folder / "head.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats"]
            + [f"--{name}={value}" for name, value in options.items()],
            env=environment,
            cwd=folder,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    client_environment = {
        name: value
        for name, value in environment.items()
        if name not in ("RAY_FAKE_CLUSTER", "RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING", "RAY_TMPDIR")
    }
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}", environment["RAY_AUTH_TOKEN"], process, log)
        yield Autoscaled(f"{host}:{port}", client_environment)
    finally:
        left = _stop(process, mark)
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"the cluster left processes behind: {left}"


def run(cluster, code, **more):
    """Run Python code in a process that is a client of the cluster; returns what it prints."""
    environment = cluster.environment | {"PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-c", code, cluster.address]
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=120, check=True, **more
    ).stdout
