"""The connection to Ray: an embedded one by default, a running cluster by address."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

_CONNECT_TIMEOUT_S = 5.0
_TOKEN_FILE = Path("~/.ray/auth_token")

# Measured: without its metrics agent and task events an embedded Ray starts a fifth faster; nobody looks at either.
_EMBEDDED_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


@contextlib.contextmanager
def connect(address: str | None = None, cpus: int | None = None) -> Iterator[ModuleType]:
    """Connect to Ray for the duration of a block.

    Args:
        address: HOST:PORT of a running head, ray://HOST:PORT, "auto" for the cluster this machine is part of, or
            "local" for an embedded Ray whatever the environment says. None takes the cluster that a Ray job runs on, and starts an embedded Ray where there is none.
        cpus: CPUs of an embedded Ray; None takes all. Ignored for a running cluster.

    Yields:
        The `ray` module, connected. What the block started is shut down after it.

    Raises:
        InputError: when no Ray answers at the address (within 15 seconds).
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        address = None
    if address:
        _check_address(address)
    elif "ray" not in sys.modules:  # Ray reads some of these at its import: later they would split it in two minds
        for name, value in _EMBEDDED_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Ray wants a token only where it finds one: let it find one.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) and not _TOKEN_FILE.expanduser().exists():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray protects its clusters with a token in ~/.ray by default, and warns that it does.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():  # the caller's own connection: use it, leave it
        yield ray
        return
    stack = contextlib.ExitStack()
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        else:
            stack.enter_context(_private(ray))
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        stack.close()
        if not address:
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"address: cannot join the Ray cluster at {address!r} ({reason})") from None
    try:
        yield ray
    finally:
        ray.shutdown()
        stack.close()


@contextlib.contextmanager
def _private(ray: ModuleType) -> Iterator[None]:
    """Let a Ray that starts within the block listen on the loopback only; on Linux it would on every interface."""
    constants = ray._private.ray_constants
    switch, before = constants.ENABLE_RAY_CLUSTERS_ENV_VAR, constants.ENABLE_RAY_CLUSTER
    environment = os.environ.get(switch)
    os.environ[switch], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        if environment is None:
            os.environ.pop(switch, None)
        else:
            os.environ[switch] = environment


def _check_address(address: str) -> None:
    """Find out quickly whether anything listens; Ray itself would try for a minute."""
    mend = "start one with `ray start --head`, or leave --address out to run on this machine"
    if address == "auto":
        from ray._private.services import find_gcs_addresses

        if not find_gcs_addresses():  # type: ignore[no-untyped-call]
            raise InputError(f"address: no Ray runs on this machine; {mend}")
        return
    if address.startswith(("http://", "https://")):
        raise InputError(f"address: {address!r} is a dashboard; use it with `shiftlab submit`, give HOST:PORT here")
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise InputError(f"address: {address!r} is not HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(f"address: no Ray answers at {address!r} ({error.strerror or error}); {mend}") from None
    if not os.environ.get("RAY_USE_TLS"):
        _check_service(address, f"{host}:{port}")


def _check_service(address: str, target: str) -> None:
    """Ask what listens whether it is a Ray head and whether it lets us in; Ray would try a wrong port for two minutes."""
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray.exceptions import AuthenticationError

    call = (
        "/ray.rpc.RayletDriver/ClusterInfo"
        if address.startswith("ray://")
        else "/ray.rpc.NodeInfoGcsService/CheckAlive"
    )
    try:
        token = tuple(get_auth_headers_if_auth_enabled({}).items())
    except AuthenticationError:
        raise InputError(
            "address: RAY_AUTH_MODE=token is set, but no token was found; put the cluster's into ~/.ray/auth_token"
        ) from None
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=_CONNECT_TIMEOUT_S, metadata=token)
        except grpc.RpcError as error:
            reason = error.code()
        else:
            return
    if reason in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise InputError(
            f"address: what answers at {address!r} is no Ray head; give the port of `ray start --head` (6379 unless you "
            "chose one) or of the Ray client server (ray://HOST:10001)"
        )
    if reason is grpc.StatusCode.UNAUTHENTICATED:
        mend = "check the token in RAY_AUTH_TOKEN or ~/.ray/auth_token" if token else "set RAY_AUTH_MODE=token"
        raise InputError(f"address: the Ray cluster at {address!r} wants its access token; {mend}")
    # Any other answer comes from a Ray that speaks another dialect: its own connection decides.
