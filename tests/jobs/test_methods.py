"""The page of methods is what the code says."""

from pathlib import Path

import pytest

from jobs.methods import describe, main, markdown
from lightning_modules.domain_generalization.catalog import all_methods


def test_the_docs_table_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    fresh = markdown(all_methods())
    assert page.read_text() == fresh, "run: shiftlab methods --format markdown > docs/methods.md"


@pytest.mark.parametrize("name", all_methods())
def test_every_method_states_its_equation_and_its_source(name):
    equation, source = describe(all_methods()[name])
    assert len(equation) > 20
    assert "arXiv" in source or "ECCV" in source or "CVPR" in source or "1998" in source


def test_the_command_shows_defaults_and_laws_and_names_a_wrong_method(capsys):
    assert main(["--names", "IRM", "Fish"]) == 0
    text = capsys.readouterr().out
    assert "irm_lambda = 100  ~ log-uniform on 0.1 to 1e+05" in text
    assert "fish_meta_lr = 0.5  ~ one of 0.05, 0.1, 0.5" in text
    assert main(["--names", "IRN"]) == 2
    assert "did you mean 'IRM'" in capsys.readouterr().err
