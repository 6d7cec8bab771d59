"""`shiftlab doctor`: check this machine, its Ray and the place of a run, and say what to mend."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cluster.errors import InputError
from cluster.session import connect
from cluster.storage import Location
from jobs.command import command

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EXAMPLES = """
shiftlab doctor                                       # this machine, with a Ray of its own
shiftlab doctor --run s3://bucket/sweep --skip_ray    # may a run be written there, and how fast
shiftlab doctor --address auto                        # the cluster this machine is part of, node by node
"""

_GIB = 2**30
_PYTHON = (3, 11)
_WORKER_GIB = 0.5  # resident size of a worker with torch and Lightning: 0.4 GiB, measured
_RAY_GIB = 0.6
_PROBE_MB = 32


@dataclass
class Doctor:
    """Check this machine, Ray and the place of a run; the exit code is 1 if there is a problem.

    Args:
        address: HOST:PORT or "auto" of a running Ray to join and list; null starts one here, as a sweep does.
        run: where results are to go: a directory, s3://... or gs://...; 32 MB are written there and removed again.
        skip_ray: start or join no Ray.
    """

    address: str | None = None
    run: str = "runs"
    skip_ray: bool = False


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        check: what was looked at.
        state: "ok", "warning" (works, but slower or only for small things) or "problem" (will fail).
        found: what was found, with units.
        mend: what to do about it; empty when there is nothing to do.
    """

    check: str
    state: str
    found: str
    mend: str = ""


def run(options: Doctor) -> int:
    """Make all checks and print them; returns 1 if there is a problem."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": check_python,
        "packages": check_packages,
        "torch": check_torch,
        "CPUs": check_cpus,
        "memory": check_memory,
        "shared memory": check_shared_memory,
        "open files": check_open_files,
        "disk": lambda: check_disk(options.run),
        "run": lambda: check_run(options.run),
        "browser": check_browser,
        "Ray processes": check_ray_processes,
    }
    if not options.skip_ray:
        checks["Ray"] = lambda: check_ray(options.address)
    found = list(_show(checks))
    problems = sum(finding.state == "problem" for finding in found)
    warnings = sum(finding.state == "warning" for finding in found)
    print(f"{problems or 'no'} problem{'s' * (problems != 1)}, {warnings or 'no'} warning{'s' * (warnings != 1)}")
    return 1 if problems else 0


def _show(checks: dict[str, Callable[[], Iterator[Finding]]]) -> Iterator[Finding]:
    """Make the checks: a table on a terminal, a line each as they come otherwise."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        for finding in _make(checks):
            mend = f"; mend: {finding.mend}" if finding.mend else ""
            print(f"{finding.state:<8} {finding.check:<14} {finding.found}{mend}", flush=True)
            yield finding
        return
    table = Table("check", "state", "found", "mend", box=None, header_style="bold")
    colours = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    with console.status("checking") as status:
        for finding in _make(checks, lambda name: status.update(f"checking {name}")):
            state = f"[{colours[finding.state]}]{finding.state}[/]"
            table.add_row(finding.check, state, escape(finding.found), escape(finding.mend))
            yield finding
    console.print(table)


def _make(
    checks: dict[str, Callable[[], Iterator[Finding]]], tell: Callable[[str], object] = lambda name: None
) -> Iterator[Finding]:
    for name, check in checks.items():
        tell(name)
        try:
            yield from check()
        except InputError as error:
            found, _, mend = str(error).removeprefix(f"{name}: ").partition("; ")
            yield Finding(name, "problem", found, mend)
        except Exception as error:  # one broken thing must not hide the others; it is reported as what it is
            yield Finding(name, "problem", " ".join(f"{type(error).__name__}: {error}".split())[:300])


def check_python() -> Iterator[Finding]:
    """Python itself: the version the project needs."""
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info >= _PYTHON:
        yield Finding("python", "ok", found)
    else:
        yield Finding("python", "problem", found, "make the environment with Python 3.11 or newer")


def check_packages() -> Iterator[Finding]:
    """Installed packages against what the project's metadata asks for, extras such as ray[default] included."""
    from importlib.metadata import PackageNotFoundError, version

    wrong, fine, mends = [], [], []
    direct, indirect = _requirements()
    for requirement in direct + indirect:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            mends.append(str(requirement))
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            fine.append(f"{requirement.name} {installed}")
        else:
            wrong.append(f"{requirement.name} {installed} does not fit {requirement.specifier}")
            mends.append(str(requirement))
    if wrong:
        words = " ".join(f"'{mend}'" for mend in mends)
        yield Finding("packages", "problem", "; ".join(wrong), f"{sys.executable} -m pip install {words}")
    else:
        rest = f", and {len(indirect)} more that these need" if indirect else ""
        yield Finding("packages", "ok", ", ".join(fine[: len(direct)]) + rest)


def _requirements() -> tuple[list[Requirement], list[Requirement]]:
    """What the project needs here, and what the extras of those need; from pyproject.toml where it is not installed."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        lines = requires("shiftlab") or []
    except PackageNotFoundError:  # a job runs in a copy of the working directory
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
        lines = tomllib.loads(text)["project"]["dependencies"]
    wanted = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})]
    parts = []
    for requirement in wanted:
        for extra in requirement.extras:
            try:
                inner = map(Requirement, requires(requirement.name) or [])
            except PackageNotFoundError:
                continue
            parts += [r for r in inner if r.marker and "extra" in str(r.marker) and r.marker.evaluate({"extra": extra})]
    names = {r.name for r in wanted}
    # Without their markers, so that what is printed as the mend can be pasted.
    return wanted, [Requirement(f"{r.name}{r.specifier}") for r in parts if r.name not in names]


def check_torch() -> Iterator[Finding]:
    """The torch build, its threads, and every accelerator put to work once."""
    import torch

    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            found = f"cuda:{index} {about.name}, {about.total_memory / _GIB:.0f} GiB"
            try:
                torch.ones(8, device=f"cuda:{index}").sum().item()
                yield Finding("accelerator", "ok", found)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                mend = "install the torch build for this GPU and driver (pytorch.org)"
                yield Finding("accelerator", "problem", f"{found}: {reason}", mend)
    elif torch.backends.mps.is_available():
        size = torch.mps.recommended_max_memory() / _GIB
        yield Finding("accelerator", "ok", f"mps, {size:.0f} GiB recommended at most")
    elif Path("/proc/driver/nvidia/version").exists():
        found = f"an NVIDIA driver is loaded, but torch {torch.__version__} sees no GPU"
        yield Finding("accelerator", "warning", found, "install a CUDA build of torch (pytorch.org)")
    else:
        yield Finding("accelerator", "ok", "none: everything runs on the CPU")


def check_cpus() -> Iterator[Finding]:
    """The CPUs the machine shows against those this process may use."""
    shown, usable = os.cpu_count() or 1, _usable_cpus()
    if usable < shown:
        workers = max(1, int(usable))
        found = f"{shown} shown, but only {usable:g} may be used here (affinity or container limit)"
        yield Finding("CPUs", "warning", found, f"give --workers {workers}, or raise the limit")
    else:
        yield Finding("CPUs", "ok", f"{shown}, load {os.getloadavg()[0]:.1f}")


def _usable_cpus() -> float:
    cpus: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _ = cgroup_limits()
    return min(cpus, quota or cpus)


def check_memory() -> Iterator[Finding]:
    """Free memory against what a worker a CPU would take."""
    memory, cpus = psutil.virtual_memory(), max(1, int(_usable_cpus()))
    _, limit = cgroup_limits()
    free = min(memory.available, limit or memory.available) / _GIB
    total = min(memory.total, limit or memory.total) / _GIB
    found = f"{free:.1f} of {total:.1f} GiB free"
    room = int((free - _RAY_GIB) / _WORKER_GIB)
    if room < cpus:
        mend = f"close programs, or give --workers {max(room, 0)}" + ("" if room > 0 else " (no Ray)")
        yield Finding("memory", "warning", f"{found}: room for {max(room, 0)} workers on {cpus} CPUs", mend)
    else:
        yield Finding("memory", "ok", found)


def cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> tuple[float | None, int | None]:
    """The container's limits: CPUs and bytes of memory, None where there is none (Linux control groups 1 and 2)."""
    cpus: list[float] = []
    sizes: list[int] = []
    lines = membership.read_text().splitlines() if membership.exists() else []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    for folder in [root / own, *(root / own).parents]:  # a limit of any group above holds too
        if folder == root.parent:
            break
        quota, period = (_words(folder / "cpu.max") + ["max", ""])[:2]
        if quota != "max":
            cpus.append(int(quota) / int(period))
        sizes += [int(word) for word in _words(folder / "memory.max") if word != "max"]
    old = _words(root / "cpu/cpu.cfs_quota_us") + _words(root / "cpu/cpu.cfs_period_us")
    if len(old) == 2 and int(old[0]) > 0:
        cpus.append(int(old[0]) / int(old[1]))
    sizes += [int(word) for word in _words(root / "memory/memory.limit_in_bytes") if int(word) < 2**60]
    return min(cpus, default=None), min(sizes, default=None)


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []


def check_shared_memory() -> Iterator[Finding]:
    """Shared memory, where Ray keeps a dataset once for all workers of a machine."""
    if not os.path.isdir("/dev/shm"):
        yield Finding("shared memory", "ok", "no /dev/shm on this system; Ray uses files")
        return
    size = shutil.disk_usage("/dev/shm").total / _GIB
    if size < 1:
        found = f"/dev/shm has {size * 1024:.0f} MiB; Ray keeps datasets on disk instead, which is slow"
        yield Finding("shared memory", "warning", found, "start the container with --shm-size=2g")
    else:
        yield Finding("shared memory", "ok", f"/dev/shm has {size:.1f} GiB")


def check_open_files() -> Iterator[Finding]:
    """The open-file limit; Ray raises the soft one to the hard one by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        mend = "run `ulimit -n 65536` as root before, or raise the hard limit"
        yield Finding("open files", "warning", f"at most {hard}", mend)
    else:
        yield Finding("open files", "ok", "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}")


def check_disk(uri: str) -> Iterator[Finding]:
    """Free disk for Ray's session files and for a local run."""
    folders = {"Ray's files": os.environ.get("RAY_TMPDIR", "/tmp")}
    if "://" not in uri:
        folders["the run"] = str(_existing(Path(Location.resolve(uri).root)))
    for name, folder in folders.items():
        usage = shutil.disk_usage(folder)
        found = f"{usage.free / _GIB:.1f} GiB free for {name} ({folder})"
        # Above 95 % Ray stops moving objects to disk, and what needs it fails.
        if usage.free < 2 * _GIB or usage.free < 0.05 * usage.total:
            yield Finding("disk", "warning", found, "free some: Ray wants a twentieth of the disk, and 2 GiB")
        else:
            yield Finding("disk", "ok", found)


def _existing(path: Path) -> Path:
    return next(p for p in [path, *path.parents] if p.exists())


def check_run(uri: str) -> Iterator[Finding]:
    """Write where a run is to go, measure the speed, and leave nothing behind."""
    location = Location.resolve(uri)
    data, name = secrets.token_bytes(_PROBE_MB * 10**6), f"_doctor-{secrets.token_hex(4)}"
    new = []
    if location.is_local:
        root = Path(location.root)
        new = [path for path in [root, *root.parents] if not path.exists()]
    try:
        location.check_writable()
        began = time.monotonic()
        location.write(data, name)
        seconds = time.monotonic() - began
        yield Finding("run", "ok", f"{uri}: writable, {_PROBE_MB / seconds:.0f} MB/s")
    finally:
        if location.exists(name):
            location.filesystem.delete_file(location.path(name))
        for path in new:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def check_browser() -> Iterator[Finding]:
    """A Chromium, which the project's own tests open report.html with."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    yield Finding("browser", "ok", found or "no Chromium; only the project's own tests need it")


def check_ray_processes() -> Iterator[Finding]:
    """Ray nodes of this user that run already: a cluster, or what a killed program left."""
    found = []
    for process in psutil.process_iter(["name", "uids", "status"]):
        about = process.info
        alive = about["name"] in ("raylet", "gcs_server") and about["status"] != psutil.STATUS_ZOMBIE
        if alive and about["uids"] and about["uids"].real == os.getuid():
            found.append(process.pid)
    if found:
        pids = ", ".join(map(str, found))
        mend = "if none of it is wanted, `ray stop` ends all Ray of this machine"
        yield Finding("Ray processes", "ok", f"Ray runs here already (processes {pids})", mend)
    else:
        yield Finding("Ray processes", "ok", "none of yours")


def check_ray(address: str | None) -> Iterator[Finding]:
    """Start Ray as a sweep would, or join the cluster, and run a task on every node."""
    began = time.monotonic()
    with connect(address) as ray:
        joined = time.monotonic()
        ray.get(ray.remote(num_cpus=0)(lambda: None).remote(), timeout=60)
        task = time.monotonic() - joined
        verb = "joined" if address or os.environ.get("RAY_ADDRESS") else "started"
        yield Finding("Ray", "ok", f"{ray.__version__}, {verb} in {joined - began:.1f} s, first task in {task:.1f} s")
        yield from _check_nodes(ray)


def _check_nodes(ray: Any) -> Iterator[Finding]:
    """Run a task on every node that looks for the project's code there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look() -> tuple[str, list[str]]:
        import importlib.util
        import platform

        names = ("cluster", "tuning", "lightning_modules", "jobs", "torch", "lightning")
        return platform.python_version(), [name for name in names if importlib.util.find_spec(name) is None]

    nodes = [node for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [ray.remote(num_cpus=0, scheduling_strategy=place)(look).remote() for place in places]
    for node, answer in zip(nodes, answers, strict=True):
        version, missing = ray.get(answer, timeout=60)
        has = node["Resources"]
        found = (
            f"{node['NodeManagerAddress']}: {has.get('CPU', 0):g} CPU, {has.get('GPU', 0):g} GPU, "
            f"{has.get('memory', 0) / _GIB:.1f} GiB for tasks, {has.get('object_store_memory', 0) / _GIB:.1f} GiB for "
            f"objects, Python {version}"
        )
        if missing:
            mend = "install shiftlab on every node, in the environment that runs `ray start`"
            yield Finding("node", "problem", f"{found}; it lacks {', '.join(missing)}", mend)
        else:
            yield Finding("node", "ok", found)


def main(argv: list[str] | None = None) -> int:
    """Run `shiftlab doctor`; returns the exit code."""
    return command(Doctor, run, argv, prog="shiftlab doctor", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
