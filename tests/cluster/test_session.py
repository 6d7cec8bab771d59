"""The connection to Ray: a wrong address is one line within seconds, and what a block starts ends with it."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest

from cluster.errors import InputError
from cluster.session import connect


@pytest.fixture(scope="module")
def web_port():
    """A port where a web server answers, as Ray's dashboard would."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def silent_port():
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusal(address):
    """The message with which an address is refused."""
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        with connect(address):
            pytest.fail("connected")
    assert time.monotonic() - began < 15
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "127.0.0.1:9",
            "no Ray answers at '127.0.0.1:9' (Connection refused); start one with `ray start --head`, or leave",
        ),
        ("ray://127.0.0.1:9", "no Ray answers at 'ray://127.0.0.1:9' (Connection refused)"),
        ("no-such-host.invalid:6379", "no Ray answers at 'no-such-host.invalid:6379'"),
        (
            "http://127.0.0.1:8265",
            "'http://127.0.0.1:8265' is a dashboard; use it with `shiftlab submit`, give HOST:PORT",
        ),
        ("127.0.0.1", "'127.0.0.1' is not HOST:PORT, ray://HOST:PORT or auto"),
        ("host:port", "'host:port' is not HOST:PORT"),
        ("127.0.0.1:70000", "'127.0.0.1:70000' is not HOST:PORT"),
        (":6379", "':6379' is not HOST:PORT"),
        (
            "127.0.0.1:{web}",
            "what answers at '127.0.0.1:{web}' is no Ray head; give the port of `ray start --head` (6379",
        ),
        ("ray://127.0.0.1:{web}", "what answers at 'ray://127.0.0.1:{web}' is no Ray head"),
        ("127.0.0.1:{silent}", "what answers at '127.0.0.1:{silent}' is no Ray head"),
    ],
)
def test_a_wrong_address_is_one_line_within_seconds(web_port, silent_port, address, words):
    ports = {"web": web_port, "silent": silent_port}
    assert refusal(address.format(**ports)).startswith(f"address: {words.format(**ports)}")


def test_the_address_of_the_environment_counts_where_none_is_given(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert refusal(None).startswith("address: no Ray answers at '127.0.0.1:9'")


def test_auto_without_a_ray_on_this_machine_is_one_line(tmp_path):
    code = f"""
import os, psutil
psutil.PROCFS_PATH = {str(tmp_path)!r}  # a machine with this process alone, whatever else runs on it
os.symlink("/proc/self", os.path.join(psutil.PROCFS_PATH, str(os.getpid())))
from cluster.session import connect
with connect("auto"): pass
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    began = time.monotonic()
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 15
    last = output.stderr.splitlines()[-1]
    assert re.fullmatch(
        r".*InputError: address: no Ray runs on this machine; start one with `ray start --head`, .*", last
    )


def test_an_embedded_ray_ends_with_its_block_and_a_block_inside_it_leaves_it_up():
    code = """
import os, time
os.environ["RAY_ADDRESS"] = "127.0.0.1:9"  # "local" means local
import psutil
import ray  # what reads the environment when it is imported must not clash with what `connect` sets
from cluster.session import connect

with connect("local", cpus=1) as ray:
    assert ray.cluster_resources()["CPU"] == 1
    with connect("local") as inner:
        assert inner is ray
    assert ray.is_initialized()
    assert ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=60) == 42
    started = [p for p in psutil.Process().children(recursive=True)]
    assert "raylet" in {p.name() for p in started}
assert not ray.is_initialized()
_, alive = psutil.wait_procs(started, timeout=30)
assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], alive
print("done")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180)
    assert output.stdout == "done\n", output.stderr
    assert "authentication" not in output.stderr


LISTENING = """
import json, os, sys
import psutil
from cluster.session import connect
with connect("local", cpus=1) as ray:
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    found = [
        [process.name(), c.laddr.ip]
        for process in [me, *me.children(recursive=True)]
        for c in process.net_connections(kind="inet")
        if c.status == psutil.CONN_LISTEN
    ]
    print(json.dumps({"listening": found, "gcs": ray.get_runtime_context().gcs_address}), flush=True)
    sys.stdin.readline()
print(json.dumps({"switch": os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"),
    "clusters": ray._private.ray_constants.ENABLE_RAY_CLUSTER}))
"""


def test_an_embedded_ray_listens_on_the_loopback_only_and_wants_a_token(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path)}  # without a token of the user's
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        found = json.loads(process.stdout.readline())
        assert {name for name, _ in found["listening"]} >= {"gcs_server", "raylet"}
        assert {ip.removeprefix("::ffff:") for _, ip in found["listening"]} == {"127.0.0.1"}
        with grpc.insecure_channel(found["gcs"]) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        output, _ = process.communicate("\n", timeout=60)
        assert json.loads(output) == {"switch": None, "clusters": True}  # a later connection is an ordinary one
    finally:
        process.kill()
        process.wait()
