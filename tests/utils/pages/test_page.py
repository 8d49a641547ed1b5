"""The shell of pages: date, version and command in the footer; conversations; nothing of a text is code."""

from __future__ import annotations

import json

import pytest
from support.pages import check_page

from hf_interdistill import cli
from hf_interdistill.utils.pages.command import running, shown_command
from hf_interdistill.utils.pages.page import render_page, script_data
from hf_interdistill.utils.privacy import public_word

EVIL = "</title></style><script>alert(1)</script> {{ 7 * 7 }} \" onload='x'"
TEMPLATE = """{% extends "shell.html" %}
{% from "parts.html" import badge, conversation %}
{% block title %}{{ title }}{% endblock %}
{% block main %}<h1>{{ title }}</h1>{{ badge(verdict) }}{{ conversation(prompt) }}{% endblock %}
{% block files %} Data: data.json.{% endblock %}"""


@pytest.fixture
def render(tmp_path):
    (tmp_path / "own.html").write_text(TEMPLATE)

    def rendered(prompt="Hi", title="Own", verdict="pass"):
        return render_page(tmp_path, "own.html", title=title, prompt=prompt, verdict=verdict)

    return rendered


def test_the_footer_has_the_command_or_says_that_there_was_none(render):
    check_page(render(), None)
    with running(["interdistill", "diagnose", "--cue", "two words", "--output", "/home/someone/project/runs/out"]):
        page = check_page(render(), "interdistill diagnose --cue 'two words' --output runs/out")
        assert page.text.endswith("--output runs/out") and "Data: data.json." in page.text
    assert shown_command() is None


def test_the_command_line_names_itself_while_it_runs(monkeypatch, capsys):
    from hf_interdistill.commands import env

    seen = []
    monkeypatch.setattr(env, "run", lambda *args: seen.append(shown_command()))
    assert cli.main(["env"]) == 0 and seen == ["interdistill env"] and shown_command() is None
    monkeypatch.setattr(env, "run", lambda *args: (_ for _ in ()).throw(ValueError("no")))
    assert cli.main(["env"]) == 2 and shown_command() is None


@pytest.mark.parametrize(
    "word, expected",
    [
        ("runs/rm", "runs/rm"),
        ("../data/pairs.jsonl", "../data/pairs.jsonl"),
        ("org/name", "org/name"),
        ("/srv/data/pairs.jsonl", "data/pairs.jsonl"),
        ("/home/someone/pairs.jsonl", "pairs.jsonl"),
        ("/home/someone", "~"),
        ("/root/a/b", "a/b"),
        ("/Users/some one/my models/rm", "my models/rm"),
        ("~/a/b/c", "b/c"),
        (r"C:\Users\someone\rm", "rm"),
        ("--data=/srv/a/b c.jsonl", "--data=a/b c.jsonl"),
        ("NAME=/home/someone/x/y.yaml", "NAME=x/y.yaml"),
        ('{"0.1": "/home/someone/x/y", "0.3": "C:\\\\Users\\\\someone\\\\z"}', '{"0.1": "x/y", "0.3": "z"}'),
        ("http://host:8000/a/b", "http://host:8000/a/b"),
        ("https://user:secret@host/a", "https://host/a"),
        ("hf_" + "a" * 30, "<token>"),
        ("--hub_token=hf_" + "a" * 30, "--hub_token=<token>"),
        (" I hope / this = helps!", " I hope / this = helps!"),
    ],
)
def test_a_published_word_has_no_token_and_no_folder_of_a_user(word, expected):
    assert public_word(word) == expected


def test_no_text_of_a_page_is_code(render):
    with running(["interdistill", EVIL]):
        page = check_page(render(EVIL, EVIL), shown_command())
    assert page.scripts == [] and page.text.count("alert(1)") == 4  # title, heading, prompt, command
    turns = [{"role": EVIL, "content": EVIL}]
    assert check_page(render(turns), None).text.count("{{ 7 * 7 }}") == 2


def test_data_for_scripts_ends_no_script():
    values = {"text": "</script><!--<script>&' \u2028"}
    written = script_data(json.dumps(values))
    assert not set(written) & set("<>&'") and json.loads(written) == values


def test_a_prompt_is_a_conversation_and_long_turns_are_folded(render):
    long = "word " * 100
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": long},
        {"role": "assistant", "content": "Yes.\n  No."},
        {"role": "tool", "content": ""},
    ]
    page = check_page(render(turns), None)
    roles = [text for _, text in page.all("span", "role")]
    assert roles == ["system", "user", "assistant", "tool"]
    assert [len(page.all("div", f"turn {name}")) for name in ("system", "user", "assistant", "other")] == [1] * 4
    ((attributes, folded),) = page.all("details")
    assert "open" not in attributes and folded.endswith(long.strip()) and "500 characters" in folded
    assert "Yes.\n  No.</div>" in page.source  # line breaks are kept
    text = check_page(render("Human: Hi\n\nAssistant:"), None)
    assert [each for _, each in text.all("span", "role")] == ["prompt"] and not text.all("details")
    assert len(check_page(render("a" * 420), None).all("details")) == 0
    assert len(check_page(render("a" * 421), None).all("details")) == 1


@pytest.mark.parametrize("verdict", ["pass", "flag", "inconclusive"])
def test_each_verdict_has_its_own_color(render, verdict):
    page = check_page(render(verdict=verdict), None)
    assert [text for _, text in page.all("span", f"badge {verdict}")] == [verdict]
    assert (
        page.source.count(f".badge.{verdict} {{ color: var(--{verdict}); background: var(--{verdict}-back); }}") == 1
    )
    for name in (f"--{verdict}:", f"--{verdict}-back:"):
        assert page.source.count(name) == 2  # light and dark
