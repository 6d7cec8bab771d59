"""Options, help and one-line errors, the same for every command."""

import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest

import jobs.certify
import jobs.cli
from jobs.command import INPUT_ERRORS, command, command_line


@dataclass
class Options:
    """Do something.

    Args:
        names: some names.
        numbers: some numbers.
        steps: how many.
        note: a word.
        parts: some words, also one by one.
    """

    names: list[str]
    numbers: list[int] = field(default_factory=list)
    steps: int = 3
    note: str | None = None
    parts: list[str] = field(default_factory=list, metadata={"repeatable": True})


def parse(*argv):
    seen = []
    code = command(Options, lambda o: seen.append(o) or 0, list(argv), prog="shiftlab try", examples="shiftlab try")
    assert code == 0
    return seen[0]


def test_lists_take_words_even_those_that_begin_with_a_dash():
    assert parse("--names", "-90%", "a,b", "--steps", "4") == Options(["-90%", "a,b"], [], 4)
    assert parse("--names=x", "--numbers", "1", "2") == Options(["x"], [1, 2])
    assert parse("--names", '["y", "z"]') == Options(["y", "z"])
    assert parse("--names", "1") == Options(["1"])


def test_a_list_given_again_takes_the_place_of_the_first_or_adds_to_it(tmp_path):
    assert parse("--names", "a", "b", "--names=c").names == ["c"]
    assert parse("--names=a", "--parts", "a", "b", "--parts=c", "--parts", "d").parts == ["a", "b", "c", "d"]
    assert parse("--names=a", "--parts=a", "--parts", '["b"]').parts == ["b"]
    config = tmp_path / "c.yaml"
    config.write_text("names: [a]\nparts: [a]\n")
    assert parse("--config", str(config), "--parts=b", "--parts=c").parts == ["b", "c"]


def test_yaml_gives_any_field_and_the_command_line_wins(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("names: [a]\nsteps: 7\nnote: from yaml\n")
    assert parse("--config", str(config), "--steps", "9") == Options(["a"], [], 9, "from yaml")


def test_the_command_line_written_back_parses_to_the_same_options():
    options = Options(["-90%", "it's"], [3], 5, None)
    words = __import__("shlex").split(command_line("shiftlab try", options))
    assert words[:2] == ["shiftlab", "try"]
    assert parse(*words[2:]) == options


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--names", "a", "--step", "3"], "unknown option 'step'; did you mean 'steps'?"),
        (["--names", "a", "--steps", "many"], "steps: Expected a <class 'int'>. Got value: many"),
        ([], "names"),
        (["--names", "a", "--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(argv, message, capsys):
    assert command(Options, lambda _: 0, argv, prog="shiftlab try", examples="") == 2
    error = capsys.readouterr().err
    assert error.startswith("shiftlab try: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_key_in_yaml_is_named(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("names: [a]\nstepz: 7\n")
    assert command(Options, lambda _: 0, ["--config", str(config)], prog="p", examples="") == 2
    assert "unknown option 'stepz'; did you mean 'steps'?" in capsys.readouterr().err


def test_errors_have_a_traceback_only_with_debug(capsys):
    def fail(_):
        raise ZeroDivisionError("nothing to share")

    assert command(Options, fail, ["--names", "a"], prog="p", examples="") == 1
    assert capsys.readouterr().err.startswith("p: error: ZeroDivisionError: nothing to share (at ")
    with pytest.raises(ZeroDivisionError):
        command(Options, fail, ["--names", "a", "--debug"], prog="p", examples="")
    for kind in INPUT_ERRORS:

        def wrong(_, kind=kind):
            raise kind("field: mend it")

        assert command(Options, wrong, ["--names", "a"], prog="p", examples="") == 2
        assert capsys.readouterr().err == "p: error: field: mend it\n"


def test_help_is_instant_and_imports_nothing_heavy():
    code = "import sys, jobs.cli; jobs.cli.main(['--help']); print(sorted({'torch', 'ray'} & set(sys.modules)))"
    best = min(_seconds(code) for _ in range(3))
    assert best < 0.5
    assert _output("import sys, jobs; print(sorted({'torch', 'ray'} & set(sys.modules)))") == "[]\n"
    assert _output(code).endswith("[]\n")


def _output(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def _seconds(code):
    began = time.perf_counter()
    _output(code)
    return time.perf_counter() - began


PLAIN = [name for name in jobs.cli.COMMANDS if name != "certify"]


@pytest.mark.parametrize("name", PLAIN + [f"certify {name}" for name in jobs.certify.COMMANDS])
def test_every_command_has_help_with_examples(name, capsys):
    with pytest.raises(SystemExit) as end:
        jobs.cli.main([*name.split(), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"shiftlab {name}" in text


def test_an_unknown_command_gets_the_nearest(capsys):
    assert jobs.cli.main(["sweeep"]) == 2
    assert "did you mean 'sweep'?" in capsys.readouterr().err
