"""cluster.yaml passes Ray's own checks, keeps none of its defaults' commands, and its shell lines do what they say."""

import copy
import os
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.providers import _get_default_config
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
]


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def prepared(config):
    """What `ray up` makes of the file: merged with the provider's defaults."""
    return prepare_config(copy.deepcopy(config))


def test_ray_accepts_it(prepared):
    validate_config(prepared)


def plant(config, *path, value):
    for key in path[:-1]:
        config = config[key]
    config[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["idle_timeout"], 5, "'idle_timeout' was unexpected"),
        (["available_node_types", "cpu_spot", "max_worker"], 5, "'max_worker' was unexpected"),
        (["idle_timeout_minutes"], "5", "'5' is not of type 'number'"),
        (["available_node_types", "cpu_spot", "resources"], {"CPU": 0.5}, "0.5 is not of type 'integer'"),
        (["available_node_types", "cpu_spot"], {"resources": {}}, "'node_config' is a required property"),
        (["head_node_type"], "haed", "`head_node_type` must be one of `available_node_types`"),
        (["available_node_types", "cpu_spot", "min_workers"], 17, "smaller than the sum of `min_workers`"),
        (["max_workers"], -1, "-1 is less than the minimum of 0"),
    ],
)
def test_a_planted_error_is_caught(config, path, value, message):
    plant(config, *path, value=value)
    with pytest.raises((jsonschema.ValidationError, ValueError), match=re.escape(message)):
        validate_config(prepare_config(config))


def test_the_head_type_may_not_be_left_out(config):
    del config["head_node_type"]
    prepared = prepare_config(config)  # AWS's defaults name a type of their own, which this file does not have
    with pytest.raises(ValueError, match="`head_node_type` must be one of `available_node_types`"):
        validate_config(prepared)


def test_none_of_the_providers_default_commands_is_left_in_force(config, prepared):
    defaults = _get_default_config({"type": "aws"})
    harmless = {"ray stop", "ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076"}
    for field in COMMANDS:
        assert field in config
        assert not set(prepared[field]) & set(defaults[field]) - harmless
    everything = " ".join(command for field in COMMANDS for command in prepared[field])
    assert "ray-wheels" not in everything
    assert "dev0" not in everything


def dashboard_hosts(command):
    """The addresses a shell line would make dashboards listen on; Ray's own default is the loopback."""
    words = shlex.split(command)
    inline = [word.partition("=")[2] for word in words if word.startswith("--dashboard-host=")]
    spaced = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--dashboard-host"]
    return inline + spaced


def test_the_dashboard_listens_on_the_loopback_only(prepared):
    commands = prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"]
    assert [dashboard_hosts(command) for command in commands if "--head" in command] == [["127.0.0.1"]]
    assert not any("0.0.0.0" in command or "::" in command for command in commands)
    # The check sees what AWS's defaults do, which is to listen everywhere.
    defaults = _get_default_config({"type": "aws"})["head_start_ray_commands"]
    assert [dashboard_hosts(command) for command in defaults if "--head" in command] == [["0.0.0.0"]]


def test_trials_stay_off_the_head_and_only_workers_are_spot_machines(prepared):
    types = prepared["available_node_types"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"cpu_spot", "gpu_spot"}
    assert types[prepared["head_node_type"]]["resources"]["CPU"] == 0
    assert types[prepared["head_node_type"]]["max_workers"] == 0
    # Ray checks none of these: a cluster that costs nothing when idle, and limits that can be reached.
    assert all(kind["min_workers"] == 0 for kind in types.values())
    assert sum(kind["max_workers"] for kind in types.values()) == prepared["max_workers"]
    order = ["cpu_spot", "cpu_on_demand", "gpu_spot", "gpu_on_demand"]
    assert sorted(order, key=lambda name: -types[name]["priority"]) == order


def test_what_is_mounted_is_here_small_and_enough_to_install(config):
    mounts = {remote: local for remote, local in config["file_mounts"].items() if remote.startswith("~/shiftlab/")}
    assert {remote.removeprefix("~/shiftlab/"): local for remote, local in mounts.items()} == {
        local: local for local in mounts.values()
    }
    assert {"pyproject.toml", "constraints.txt", "cluster", "lightning_modules", "tuning", "jobs"} <= set(
        mounts.values()
    )
    size = 0
    for local in mounts.values():
        assert (ROOT / local).exists(), local
        size += sum(path.stat().st_size for path in [ROOT / local, *(ROOT / local).rglob("*")] if path.is_file())
    assert size < 20_000_000  # Ray reads all of it on every `ray up`
    assert {".git", ".venv", "runs"} <= set(config["rsync_exclude"])
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_every_shell_line_parses(prepared):
    lines = [command for field in COMMANDS for command in prepared[field]]
    for kind in ("gpu_spot", "gpu_on_demand"):
        lines += prepared["available_node_types"][kind]["worker_setup_commands"]
    assert len(lines) > 8
    for line in lines:
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_the_first_line_on_a_machine_gives_shells_the_token_and_the_environment_once(config, tmp_path):
    (tmp_path / ".bashrc").write_text("# as the image has it\n")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for _ in range(2):  # `ray up` runs it again on every update
        for line in config["initialization_commands"]:
            subprocess.run(["bash", "-c", line], env=environment, check=True)
    assert (tmp_path / ".bashrc").read_text().count("RAY_AUTH_MODE") == 1
    script = "source ~/.bashrc; echo $RAY_AUTH_MODE; echo $PATH"
    output = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    mode, path = output.splitlines()
    assert mode == "token"
    assert path.split(":")[0] == f"{tmp_path}/venv/bin"


def test_lost_machines_are_noticed_within_seconds(prepared):
    """What the head is started with are settings that this Ray knows, and their product is the wait."""
    (head,) = (line for line in prepared["head_start_ray_commands"] if "--head" in line)
    checks = dict(re.findall(r"RAY_(health_check_\w+)=(\d+)", head))
    assert set(checks) == {
        "health_check_initial_delay_ms",
        "health_check_period_ms",
        "health_check_timeout_ms",
        "health_check_failure_threshold",
    }
    period, timeout = int(checks["health_check_period_ms"]), int(checks["health_check_timeout_ms"])
    assert (period + timeout) * int(checks["health_check_failure_threshold"]) <= 15_000
    library = Path(ray._raylet.__file__).read_bytes()
    assert all(name.encode() in library for name in checks)
