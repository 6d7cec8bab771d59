"""`shiftlab submit`: run any other command as a job of a Ray cluster, follow its log and return its exit code."""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import os
import shlex
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.errors import InputError
from jobs.cli import COMMANDS
from jobs.command import command

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

EXAMPLES = """
shiftlab submit -- sweep --config sweep.yaml --run s3://bucket/sweep
shiftlab submit --address http://127.0.0.1:8265 --submission_id sweep-7 -- sweep --config sweep.yaml --run /data/sweep
shiftlab submit --no_wait -- report s3://bucket/sweep
"""

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

EXCLUDES = [
    *("/runs", "/.venv", "/venv", "/.git"),
    *("__pycache__", "*.egg-info", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".import_linter_cache"),
]
"""What does not travel, in .gitignore's notation; .gitignore and .rayignore files are honoured too."""

_TIMEOUT_S = 5.0
_PENDING_NOTICE_S = 20.0
_END_S = 15.0


@dataclass
class Submit:
    """Run a shiftlab command, given after --, as a job of a Ray cluster; the exit code is the job's own.

    The working directory travels to the cluster and the job runs in the copy, so submit from the project's root. From
    anywhere else the shiftlab that is installed on the cluster's machines runs. What .gitignore names, runs/, .venv/
    and caches stay behind.

    Args:
        command: the command and its options; written after --, without quotes.
        address: dashboard of the head, http://HOST:8265; null takes $RAY_API_SERVER_ADDRESS, else this machine's.
        submission_id: name of the job, usable once in a cluster's life; null takes a random one.
        no_wait: return when the job is accepted, without following its log.
        entrypoint_num_cpus: CPUs the job's own process reserves, on any node; 0 runs it on the head, reserving none.
    """

    command: list[str] = field(default_factory=list)
    address: str | None = None
    submission_id: str | None = None
    no_wait: bool = False
    entrypoint_num_cpus: float = 0

    def __post_init__(self) -> None:
        if self.entrypoint_num_cpus < 0:
            raise InputError(f"entrypoint_num_cpus: {self.entrypoint_num_cpus} is too small; give 0 or more")


def run(options: Submit) -> int:
    """Submit the job and follow it to its end; returns the job's exit code, 1 where it left none."""
    entrypoint = _entrypoint(options.command)
    address = options.address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    _check_dashboard(address)
    client = _client(address)
    job = _submit(client, options, entrypoint)
    print(f"job {job} submitted: {entrypoint}", flush=True)
    hints = f"  ray job logs {job} --follow --address {address}\n  ray job stop {job} --address {address}"
    if options.no_wait:
        print(f"it runs on its own; follow or stop it with\n{hints}")
        return 0
    try:
        return _follow(client, job, address, options.entrypoint_num_cpus)
    except KeyboardInterrupt:
        print(f"\njob {job} keeps running; follow or stop it with\n{hints}", file=sys.stderr)
        return 130


_HOME_RUNS = ("reproduce", "heads")
"""Commands that write to runs/ of the working folder where no --run is given."""


def _entrypoint(words: list[str]) -> str:
    """Check what can be checked of the command before it travels; returns the shell line."""
    if not words:
        raise InputError(f"command: write it after --, e.g. `shiftlab submit -- sweep --config FILE`; {_choices()}")
    name, *arguments = words
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        raise InputError(f"unknown command {name!r}; {f'did you mean {close[0]!r}?' if close else _choices()}")
    travelling, run_uri = [], None
    for option, value in _pairs(arguments):
        if option == "--config":
            value = _config(value or "")
            run_uri = _run_of(value) or run_uri  # the later of file and option counts, as in the command itself
        elif option == "--run":
            run_uri = value
        travelling += [option] if value is None else [option, value]
    if not run_uri and name in _HOME_RUNS and "--help" not in words and "list" not in words:
        raise InputError(
            f"run: {name} would write to runs/ in the job's copy of this folder, on the head; give --run with "
            "an absolute path on the head, s3://... or gs://..."
        )
    if run_uri and "://" not in run_uri and not os.path.isabs(run_uri):
        raise InputError(
            f"run: {run_uri!r} would be written into the job's copy of this folder, on the head; "
            "give an absolute path on the head, s3://... or gs://..."
        )
    return shlex.join(["python", "-m", f"jobs.{name.replace('-', '_')}", *travelling])


def _choices() -> str:
    return f"the commands are {', '.join(COMMANDS)}"


def _pairs(words: list[str]) -> list[tuple[str, str | None]]:
    """Group `--config F`, `--config=F`, `--run R` and `--run=R` into (option, value); every other word stands alone."""
    pairs: list[tuple[str, str | None]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, _, value = word.partition("=")
        if option in ("--config", "--run"):
            pairs.append((option, value or (rest.pop(0) if rest else None)))
        else:
            pairs.append((word, None))
    return pairs


def _config(value: str) -> str:
    """The path of a config file as the job will see it."""
    path, root = Path(value).resolve(), Path.cwd()
    if not path.is_file():
        raise InputError(f"config: there is no file {value!r}")
    if not path.is_relative_to(root):
        raise InputError(f"config: {value!r} lies outside {str(root)!r}, the folder that travels; copy it there")
    relative = path.relative_to(root)
    if f"/{relative.parts[0]}" in EXCLUDES:
        raise InputError(f"config: {value!r} lies in {relative.parts[0]}/, which does not travel; copy it elsewhere")
    return str(relative)


def _run_of(config: str) -> str | None:
    import yaml

    try:
        values = yaml.safe_load(Path(config).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config: {config!r} is not YAML ({' '.join(str(error).split())})") from None
    value = values.get("run") if isinstance(values, dict) else None
    return value if isinstance(value, str) else None


def _check_dashboard(address: str) -> None:
    """Find out in seconds whether a Ray dashboard answers and lets us in; Ray's own client would wait without end."""
    parts = urlsplit(address)
    try:
        valid, port = parts.scheme in ("http", "https") and parts.hostname, parts.port
    except ValueError:
        valid, port = None, None
    if not valid:
        raise InputError(f"address: {address!r} is not a dashboard's; give http://HOST:8265, as `ray start` prints it")
    try:
        port = port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(
            f"address: nothing answers at {address!r} ({error.strerror or error}); start a head with "
            "`ray start --head` and give the dashboard's address that it prints"
        ) from None
    import requests
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray.exceptions import AuthenticationError

    try:
        token = get_auth_headers_if_auth_enabled({})
        response = requests.get(f"{address.rstrip('/')}/api/version", headers=token, timeout=_TIMEOUT_S)
        if response.status_code in (401, 403):
            mend = "check the token in RAY_AUTH_TOKEN or ~/.ray/auth_token" if token else "set RAY_AUTH_MODE=token"
            raise InputError(f"address: the Ray cluster at {address!r} wants its access token; {mend}")
        found = "ray_version" in response.json()
    except AuthenticationError:
        raise InputError(
            "address: RAY_AUTH_MODE=token is set, but no token was found; put the cluster's into ~/.ray/auth_token"
        ) from None
    except (requests.RequestException, ValueError, TypeError):
        found = False
    if not found:
        raise InputError(
            f"address: what answers at {address!r} is no Ray dashboard; give http://HOST:PORT with the dashboard's "
            "port (8265 unless you chose one)"
        )


def _client(address: str) -> JobSubmissionClient:
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets the environment win over the argument
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")  # EXCLUDES holds them; Ray warns of each
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # one line for every ignored file otherwise
    return JobSubmissionClient(address)


def _submit(client: JobSubmissionClient, options: Submit, entrypoint: str) -> str:
    if not Path("jobs", "__init__.py").is_file():
        print("no jobs/ in this folder: the shiftlab installed on the cluster runs, not a copy from here")
    try:
        return str(
            client.submit_job(
                entrypoint=entrypoint,
                runtime_env={"working_dir": ".", "excludes": EXCLUDES},
                submission_id=options.submission_id,
                entrypoint_num_cpus=options.entrypoint_num_cpus or None,
            )
        )
    except (RuntimeError, ValueError, OSError) as error:
        text = str(error)
        if f"Job with submission_id {options.submission_id} already exists" in text:
            raise InputError(
                f"submission_id: {options.submission_id!r} was used before in this cluster; choose another, or follow "
                f"that job with `ray job logs {options.submission_id} --address {client.get_address()}`"
            ) from None
        raise InputError(f"the cluster refused the job: {_one_line(text)}") from None


def _follow(client: JobSubmissionClient, job: str, address: str, cpus: float) -> int:
    """Print the job's log as it grows; returns the job's exit code."""
    import aiohttp

    async def print_log() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        _wait_for_start(client, job, cpus)
        asyncio.run(print_log())
        details = _wait_for_end(client, job)
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        raise InputError(
            f"lost the connection to {address} ({_one_line(str(error)) or type(error).__name__}); the job may still "
            f"run: follow it with `ray job logs {job} --follow --address {address}`"
        ) from None
    return _report(job, details)


def _wait_for_start(client: JobSubmissionClient, job: str, cpus: float) -> None:
    """Wait while the job is pending, and say so if that takes long: without room in the cluster it may be for ever."""
    notice = time.monotonic() + _PENDING_NOTICE_S
    while client.get_job_status(job) == "PENDING":
        if time.monotonic() > notice:
            notice = float("inf")
            wants = f" for a node with {cpus:g} free CPUs (--entrypoint_num_cpus)" if cpus else ""
            print(f"job {job} still waits{wants}; Ctrl-C stops waiting, not the job", file=sys.stderr, flush=True)
        time.sleep(0.5)


def _wait_for_end(client: JobSubmissionClient, job: str) -> JobDetails:
    """The log ends when the job does; its details may be a moment late."""
    deadline = time.monotonic() + _END_S
    while True:
        details = client.get_job_info(job)
        if details.status.is_terminal():
            return details
        if time.monotonic() > deadline:
            raise RuntimeError("the log ended before the job did")
        time.sleep(0.2)


def _report(job: str, details: JobDetails) -> int:
    code = details.driver_exit_code
    if details.status == "SUCCEEDED":
        print(f"job {job} succeeded")
        return 0
    if code is None:
        print(f"job {job} {details.status.lower()}: {_one_line(details.message or '')}", file=sys.stderr)
        return 1
    print(f"job {job} failed with exit code {code}", file=sys.stderr)
    if any(sign in (details.message or "") for sign in ("No module named", "python: not found")):
        print("the head's `python` lacks shiftlab: activate its environment before `ray start`", file=sys.stderr)
    return code if code >= 0 else 128 - code


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def main(argv: list[str] | None = None) -> int:
    """Run `shiftlab submit`; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--" in argv:
        split = argv.index("--")
        argv = [*argv[:split], f"--command={json.dumps(argv[split + 1 :])}"]
    return command(Submit, run, argv, prog="shiftlab submit", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
