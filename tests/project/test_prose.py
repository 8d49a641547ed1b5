"""The checks of prose find what they are for, and find nothing in the pages."""

from __future__ import annotations

import importlib.util

import pytest
from support.datasets import ROOT

_SPEC = importlib.util.spec_from_file_location("prose", ROOT / ".ci" / "prose.py")
prose = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(prose)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A killed job goes\non after a kill.", 1),
        ("Fine.\n\nNot run for want of a GPU.", 3),
        ("It learns the pairs by heart.", 1),
        ("Files Of Strangers.", 1),
        ("My neighbours.", 1),
        ("It says so, which is said once a model.", 1),
        ("One line a\nstage.", 1),
        ("It reads 14 tokens a text.", 1),
        ("No GPU was at hand.", 1),
    ],
)
def test_words_that_are_not_used_are_found(text, line):
    assert [number for number, _ in prose.wrong_words(text)] == [line]


def test_other_words_are_left_alone():
    assert not list(prose.wrong_words("It resumes after a kill. My neighbor reads online; heartily."))
    assert not list(prose.wrong_words("14 tokens per text, 20 tokens a second: how many tokens a model can read."))


LONG = " ".join(["word"] * 26)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (f"{LONG}.", [1]),
        (" ".join(["word"] * 25) + ".", []),
        (f"Short.\n\n- {LONG}.\n- {LONG}.\n", [3, 4]),
        (f"{' '.join(['word'] * 13)}.\n{' '.join(['word'] * 13)}.", []),
        (f"{' '.join(['word'] * 13)}\n{' '.join(['word'] * 13)}.", [1]),
        (f"```text\n{LONG}.\n```\n", []),
        (f"| {LONG} |\n# {LONG}\n![{LONG}](x.png)\n", []),
        (f"`{LONG}` is one word.", []),
        (f"[one two]({'word/' * 30}) are two.", []),
        (f"**A colon ends a sentence:** {' '.join(['word'] * 24)}.", []),
    ],
)
def test_long_sentences_are_found(text, lines):
    assert [number for number, _ in prose.too_long(text)] == lines


def test_sentences_of_recipes_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    for name in ("README.md", "docs/page.md", "recipes/studies/some/README.md", "tests/README.md", "docs/families.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{LONG}.\n")
    faults = [fault for path in prose.pages() for fault in prose.faults(path)]
    assert [fault.split(":")[0] for fault in faults] == ["README.md", "docs/page.md", "recipes/studies/some/README.md"]


def test_the_pages_have_no_faults():
    assert [fault for path in prose.pages() for fault in prose.faults(path)] == []


def test_a_fault_ends_the_command(tmp_path, capsys):
    (tmp_path / "page.md").write_text("Learnt by heart.\n")
    assert prose.main([str(tmp_path / "page.md")]) == 1
    assert capsys.readouterr().out == "page.md:1: `by heart`: write `memorize`\n"
    (tmp_path / "page.md").write_text("Memorized.\n")
    assert prose.main([str(tmp_path / "page.md")]) == 0
