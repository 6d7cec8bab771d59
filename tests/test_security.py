"""What docs/security.md promises of the code itself, and what YAML may do."""

import ast
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.command import command
from jobs.train import main as train

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "jobs", "lightning_modules", "tuning")


def calls():
    """(file, dotted name, keywords) of every call in the project."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), keywords


def test_checkpoints_are_loaded_as_weights_only():
    found = [(where, keywords) for where, name, keywords in calls() if name == "torch.load"]
    assert found
    assert [where for where, keywords in found if keywords.get("weights_only") != "True"] == []
    fits = [keywords for _, name, keywords in calls() if name.endswith("trainer.fit") and "ckpt_path" in keywords]
    assert fits
    assert {keywords.get("weights_only") for keywords in fits} == {"True"}


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    banned = {"pickle.load", "pickle.loads", "cloudpickle.loads", "eval", "exec", "os.system", "os.popen", "yaml.load"}
    banned |= {"yaml.unsafe_load", "yaml.full_load"}
    assert [(where, name) for where, name, _ in calls() if name in banned] == []
    assert [where for where, _, keywords in calls() if keywords.get("shell", "False") != "False"] == []
    numpy = [
        where
        for where, name, keywords in calls()
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") == "True"
    ]
    assert numpy == []


def test_nothing_is_told_to_listen_everywhere():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert "0.0.0.0" not in path.read_text(), path


@dataclass
class Options:
    """Do something.

    Args:
        method: of it.
        more: of it.
    """

    method: str
    more: list[str] | None = None


@pytest.fixture
def files(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass Class: pass\n")
    (tmp_path / "sent.yaml").write_text("method: planted:Class\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("planted", None)


def parse(*words):
    seen = []
    code = command(Options, lambda options: seen.append(options) or 0, list(words), prog="job", examples="job")
    return code, seen


def test_a_class_path_in_a_file_imports_nothing_unless_trusted(files, capsys):
    assert parse("--config=sent.yaml") == (2, [])
    message = capsys.readouterr().err.strip()
    assert message == (
        "job: error: method: planted:Class in sent.yaml would import the module planted; "
        "if you trust the file, add --trust planted"
    )
    for trust in (["--trust=planted"], ["--trust", "other", "planted"], ["--trust=all"]):
        assert parse("--config=sent.yaml", *trust) == (0, [Options("planted:Class")])
    assert parse("--config=sent.yaml", "--method=planted:Class")[0] == 0  # typed by the person themselves
    assert parse("--config=sent.yaml", "--trust=other")[0] == 2


@pytest.mark.parametrize(
    "text",
    [
        *("method: jobs.train:Train", "method: val_loss:min", "method: GaussianSEM:n=400", "method: ERM"),
        "more: ['sharpness:every=5']",
    ],
)
def test_other_words_in_a_file_are_data(files, text):
    (files / "plain.yaml").write_text(f"method: ERM\n{text}\n" if text.startswith("more") else text)
    assert parse("--config=plain.yaml")[0] == 0


def test_lists_are_looked_through(files):
    for value in ("planted:Class", "planted:Class:every=5"):
        (files / "sent.yaml").write_text(f"method: ERM\nmore: [a, '{value}']\n")
        assert parse("--config=sent.yaml")[0] == 2


def test_a_sent_configuration_runs_no_code_of_a_module_here(files, capsys):
    (files / "sent.yaml").write_text("method: planted:Class\ndataset: ColoredMNIST\nrun: out\n")
    assert train(["--config=sent.yaml"]) == 2
    assert not Path("ran").exists()
    assert not os.path.exists("out")


def test_yaml_tags_make_no_objects(files, capsys):
    (files / "sent.yaml").write_text("method: !!python/object/apply:os.system ['touch ran']\n")
    assert parse("--config=sent.yaml")[0] == 2
    assert not Path("ran").exists()
