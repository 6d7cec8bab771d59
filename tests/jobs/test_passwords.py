"""`shiftlab passwords` as a person types it; nothing that leaked is ever stored."""

import numpy as np
import pytest

from cluster.store import Run
from jobs.passwords import KEYS, PASSWORD_SITES, main
from lightning_modules.passwords.catalog import make_schema
from lightning_modules.passwords.challenges import SITES

OWN = "maps: {f: letters, g: permutation}\nstart: g(f(letter) + f(last))\ndigit: g(previous + f(letter))\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A list of sites, a schema file and what leaked of it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sites.txt").write_text("\n".join(SITES[:20]) + "\n")
    (tmp_path / "own.yaml").write_text(OWN)
    schema = make_schema("mental-hash")
    responses = schema.respond(schema.keygen(np.random.default_rng(3)), SITES)
    rows = [f"{site},{response}" for site, response in zip(SITES, responses, strict=True)]
    (tmp_path / "leaked.csv").write_text("\n".join(["challenge,response", *rows[:14]]) + "\n")
    return dict(zip(SITES, responses, strict=True))


def passwords(*words):
    return main([*words, "--workers=0", "--run=run"])


def rows(table="password_sites"):
    if table == "password_sites":
        return Run("run").read_completed(table, PASSWORD_SITES, KEYS).to_pylist()
    return Run("run").read(table).to_pylist()


def test_how_many_of_ones_passwords_may_leak(capsys):
    assert passwords("--sites=sites.txt", "--random_keys=6") == 0
    out = capsys.readouterr().out
    assert "is no password manager" in out
    assert "half of the other passwords are known after" in out
    assert len(rows()) == 6 * 20
    assert len(rows("trials")) == 6
    success = [row for row in rows("metrics") if row["metric"] == "success"]
    assert sorted({row["step"] for row in success}) == list(range(1, 20))
    assert passwords("--sites=sites.txt", "--random_keys=6") == 0
    assert "0 run now" in capsys.readouterr().out


def test_a_schema_of_ones_own_and_random_letters(capsys):
    assert passwords("--schema=own.yaml", "--random=8", "--random_keys=2", "--leaks", "5", "15") == 0
    success = {row["step"]: row["value"] for row in rows("metrics") if row["metric"] == "success"}
    assert success[5] < success[15]
    assert success[15] > 0.7
    assert passwords("--schema=pointer-sum-1-1-14", "--random=0", "--random_keys=1", "--leaks", "42") == 0
    assert "known after 42 leaks" in capsys.readouterr().out


@pytest.mark.parametrize("schema", ["mental-hash", "own.yaml"])
def test_what_follows_from_pairs_is_told_and_no_password_is_stored_or_shown(folder, schema, tmp_path, capsys):
    assert passwords(f"--schema={schema}", "--pairs=leaked.csv") == 0
    captured = capsys.readouterr()
    found = {row["site"]: row["status"] for row in rows()}
    assert set(found) == set(SITES[14:])
    known = sum(status == "determined" for status in found.values())
    assert f"{known} of 46 other passwords follow" in captured.out
    assert 10 < known < 46
    long = [response for response in folder.values() if len(response) >= 5]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    text = str([rows(name) for name in ("trials", "metrics", "password_sites")]) + captured.out + captured.err
    assert not [response for response in long if response.encode() in stored or response in text]


def test_both_ways_to_write_the_mental_hash_find_the_same(capsys):
    found = []
    for schema in ("mental-hash", "own.yaml"):
        assert main([f"--schema={schema}", "--pairs=leaked.csv", "--workers=0", f"--run={schema}.run"]) == 0
        table = Run(f"{schema}.run").read_completed("password_sites", PASSWORD_SITES, KEYS).to_pylist()
        found.append({row["site"]: row["status"] for row in table})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--schema=mental-hsh"], "did you mean 'mental-hash'"),
        (["--sites=none.txt"], "sites: none.txt cannot be read"),
        (["--sites=leaked.csv"], "outside a-z; use normalise"),
        (["--limit=0"], "limit: 0"),
        (["--limit=-1"], "limit: -1"),
        (["--random_keys=0"], "random_keys: 0 is too small"),
        (["--leaks", "0"], "below 1"),
        (["--random=8", "--sites=sites.txt"], "goes with neither"),
        (["--schema=pointer-sum-1-1-26"], "no list of numbers"),
        (["--pairs=sites.txt"], "lacks a column"),
        (["--schema=none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_wrong_input_is_one_line(capsys, words, reason):
    assert passwords(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_contradicting_pairs_are_named(tmp_path, capsys):
    text = (tmp_path / "leaked.csv").read_text().splitlines()
    first = text[1].split(",")
    text.append(f"{first[0]},{'1' if first[1][0] != '1' else '2'}{first[1][1:]}")
    (tmp_path / "leaked.csv").write_text("\n".join(text))
    for schema in ("mental-hash", "own.yaml"):
        assert passwords(f"--schema={schema}", "--pairs=leaked.csv") == 2
        assert "pair 15 (challenge 'adobe') contradicts the pairs before it" in capsys.readouterr().err


def test_names_are_normalised_on_request():
    with open("sites.txt", "w") as file:
        file.write("GitHub.com\nYou Tube\nÉtsy\n")
    assert passwords("--sites=sites.txt", "--random_keys=1", "--normalise") == 0
    assert {row["site"] for row in rows()} == {"githubcom", "youtube", "etsy"}
