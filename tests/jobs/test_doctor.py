"""The doctor: every check is a line, a problem names its mend and decides the exit code, and nothing is left behind."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jobs import doctor


def lines_of(capsys):
    """Map each check to its lines."""
    found = {}
    for line in capsys.readouterr().out.splitlines()[:-1]:
        state, check, text = re.fullmatch(r"(ok|warning|problem) +(.{14}) (.*)", line).groups()
        found.setdefault(check.strip(), []).append((state, text))
    return found


def test_a_healthy_machine_is_described_line_by_line(ray_session, tmp_path, capsys):
    assert doctor.main(["--run", str(tmp_path / "new" / "run")]) == 0
    found = lines_of(capsys)
    assert set(found) == {
        *("python", "packages", "torch", "accelerator", "CPUs", "memory", "shared memory", "open files", "disk", "run"),
        *("browser", "Ray processes", "Ray", "node"),
    }
    assert "problem" not in {state for findings in found.values() for state, _ in findings}
    assert found["python"] == [("ok", f"{sys.version.split()[0]} at {sys.executable}")]
    assert f"ray {ray_session.__version__}" in found["packages"][0][1]
    assert re.search(r"writable, \d+ MB/s$", found["run"][0][1])
    assert re.search(r"first task in \d+\.\d s$", found["Ray"][0][1])
    assert re.search(r": 2 CPU, \d+ GPU, .* Python " + re.escape(sys.version.split()[0]), found["node"][0][1])
    assert "Ray runs here already" in found["Ray processes"][0][1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file/run", "Not a directory); mend: choose another --run"),
        ("/dev/null", "mend: choose another --run"),
        ("ftp://host/run", "cannot open 'ftp://host/run'"),
        ("ftp://host/run", "mend: give a local path, s3://... or gs://..."),
    ],
)
def test_a_place_that_cannot_be_written_is_a_problem_with_its_mend(tmp_path, monkeypatch, capsys, uri, words):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    assert doctor.main(["--skip_ray", "--run", uri]) == 1
    output = capsys.readouterr().out
    assert output.splitlines()[-1].startswith("1 problem, ")
    line = next(line for line in output.splitlines() if line.startswith("problem  run "))
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_exists_is_left_as_it_was(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert [f.state for f in doctor.check_run(str(tmp_path))] == ["ok"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_an_address_where_no_ray_answers_is_a_problem_and_the_other_checks_stand(tmp_path, capsys):
    assert doctor.main(["--address", "127.0.0.1:9", "--run", str(tmp_path)]) == 1
    found = lines_of(capsys)
    assert found["Ray"][0][0] == "problem"
    assert "mend: start one with `ray start --head`" in found["Ray"][0][1]
    assert found["run"][0][0] == "ok"


def test_a_check_that_breaks_is_a_problem_and_the_other_checks_stand(monkeypatch, tmp_path, capsys):
    def broken():
        raise OSError("libcudart.so.13: cannot open shared object file")
        yield

    monkeypatch.setattr(doctor, "check_torch", broken)
    assert doctor.main(["--skip_ray", "--run", str(tmp_path)]) == 1
    found = lines_of(capsys)
    assert found["torch"] == [("problem", "OSError: libcudart.so.13: cannot open shared object file")]
    assert found["run"][0][0] == "ok"


@pytest.mark.gpu
def test_every_gpu_is_put_to_work():
    import torch

    found = [finding for finding in doctor.check_torch() if finding.check == "accelerator"]
    assert len(found) == torch.cuda.device_count() > 0
    assert all(re.fullmatch(r"cuda:\d+ .+, \d+ GiB", finding.found) for finding in found)
    assert {finding.state for finding in found} == {"ok"}


def test_a_gpu_that_cannot_be_used_is_a_problem(monkeypatch):
    import torch

    def broken(*size, device):
        raise RuntimeError("CUDA error: no kernel image is available\nSearch for ...")

    about = SimpleNamespace(name="Old GPU", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(torch, "ones", broken)
    _, finding = doctor.check_torch()
    assert finding.state == "problem"
    assert finding.found == "cuda:0 Old GPU, 8 GiB: CUDA error: no kernel image is available"
    assert finding.mend.startswith("install the torch build")


def test_packages_that_are_missing_or_too_old_are_named_with_a_command_that_mends_them(monkeypatch, tmp_path):
    wanted = ["numpy>=999", "no-such-package", "rich", "only-for-dev; extra == 'dev'", "ray[default]>=2.60"]
    about = tmp_path / "shiftlab-9.dist-info"
    about.mkdir()
    text = "".join(f"Requires-Dist: {line}\n" for line in wanted)
    (about / "METADATA").write_text(f"Metadata-Version: 2.4\nName: shiftlab\nVersion: 9\n{text}")
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = doctor.check_packages()
    assert finding.state == "problem"
    assert re.fullmatch(r"numpy \S+ does not fit >=999; no-such-package is missing", finding.found)
    assert finding.mend == f"{sys.executable} -m pip install 'numpy>=999' 'no-such-package'"

    # What ray[default] adds is looked at too: without aiohttp there are no jobs.
    _, indirect = doctor._requirements()
    assert "aiohttp" in {requirement.name for requirement in indirect}


def test_more_cpus_than_may_be_used_is_a_warning_with_the_right_number_of_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4096)
    monkeypatch.setattr(doctor, "cgroup_limits", lambda: (1.5, None))
    (finding,) = doctor.check_cpus()
    assert (finding.state, finding.mend) == ("warning", "give --workers 1, or raise the limit")
    assert "4096 shown, but only" in finding.found


def test_little_memory_is_a_warning_with_the_number_of_workers_that_fit(monkeypatch):
    monkeypatch.setattr(doctor, "_usable_cpus", lambda: 4.0)
    monkeypatch.setattr(doctor, "cgroup_limits", lambda: (None, int(1.7 * 2**30)))
    (finding,) = doctor.check_memory()
    assert (finding.state, finding.found) == ("warning", "1.7 of 1.7 GiB free: room for 2 workers on 4 CPUs")
    assert finding.mend.endswith("--workers 2")


def test_limits_of_a_container_are_read_in_both_notations(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    member = tmp_path / "member"
    assert doctor.cgroup_limits(tmp_path / "nothing", member) == (None, None)

    member.write_text("0::/user/job\n")
    write("v2/user/job/cpu.max", "max 100000\n")
    write("v2/user/job/memory.max", "8000000000\n")
    write("v2/user/cpu.max", "250000 100000\n")
    write("v2/user/memory.max", "max\n")
    assert doctor.cgroup_limits(tmp_path / "v2", member) == (2.5, 8_000_000_000)

    member.write_text("1:cpu:/\n")
    write("v1/cpu/cpu.cfs_quota_us", "50000\n")
    write("v1/cpu/cpu.cfs_period_us", "100000\n")
    write("v1/memory/memory.limit_in_bytes", "9223372036854771712\n")  # the kernel's "no limit"
    assert doctor.cgroup_limits(tmp_path / "v1", member) == (0.5, None)
    write("v1/cpu/cpu.cfs_quota_us", "-1\n")
    write("v1/memory/memory.limit_in_bytes", "1000000000\n")
    assert doctor.cgroup_limits(tmp_path / "v1", member) == (None, 1_000_000_000)


def test_a_low_limit_of_open_files_is_a_warning():
    code = "from jobs.doctor import check_open_files; print(*check_open_files())"
    words = ["sh", "-c", f"ulimit -n 1000; exec '{sys.executable}' -c '{code}'"]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "state='warning', found='at most 1000', mend='run `ulimit -n 65536`" in output


def test_a_terminal_gets_a_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    assert doctor.main(["--skip_ray", "--run", str(tmp_path)]) == 0
    output = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(r"check +state +found +mend", output)
    assert re.search(r"^ *python +ok +3\.", output, re.MULTILINE)
    assert re.search(r"no problems, (no|\d+) warnings?\s*$", output)
