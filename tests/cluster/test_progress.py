"""Progress reads the same on a terminal and in a log."""

import io

from rich.console import Console

from cluster.progress import PlanProgress, format_duration


def show(terminal, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cluster.progress.time.monotonic", lambda: clock[0])
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    with PlanProgress("trials", 40, done=10, failed=1, console=console) as progress:
        for _ in range(20):
            clock[0] += 1
            progress.update(1, 0, 2)
        progress.update(0, 1, 1)
    return text.getvalue()


def test_a_log_gets_a_plain_line_every_ten_seconds_and_a_last_one(monkeypatch):
    lines = show(False, monkeypatch).splitlines()
    assert lines == [
        "20/40 trials done, 2 running, 1 failed, 1 trials/s, 20 s left",
        "30/40 trials done, 2 running, 1 failed, 1 trials/s, 10 s left",
        "31/40 trials done, 1 running, 2 failed, 1.05 trials/s, 9 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    text = show(True, monkeypatch)
    assert "\x1b" in text
    assert "31/40" in text


def test_durations_are_for_people():
    assert [format_duration(s) for s in (8.2, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 5 min"]
