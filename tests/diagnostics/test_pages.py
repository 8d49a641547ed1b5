"""Text of models and data on the pages is shown, and never runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import escape

import numpy as np
import pytest
from support.pages import Page, check_page
from support.rain import tree_node as node

from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.best_of_n import measure_best_of_n
from hf_interdistill.diagnostics.measures.noise import measure_noise
from hf_interdistill.diagnostics.measures.swapped_prompt import measure_swapped_prompt
from hf_interdistill.diagnostics.report.page import write_report
from hf_interdistill.rain.results.records import TreeRecord
from hf_interdistill.rain.results.views import to_html

TITLE = "document.title='it ran'"
PAYLOADS = [
    f"<script>{TITLE}</script>",
    f"</script><script>{TITLE}</script>",
    f"</style></title></textarea><script>{TITLE}</script>",
    f'<img src=x onerror="{TITLE}">',
    f'" onmouseover="{TITLE}" autofocus onfocus="{TITLE}" x="',
    f'<svg onload="{TITLE}"></svg>',
    f"<!--<script>{TITLE}//-->",
    f'<iframe srcdoc="<script>parent.{TITLE}</script>">',
    f"javascript:{TITLE}",
    "{{ ''.__class__ }}",
    f"\u2028</script\n><script>{TITLE}</script>",
]
EVIL = "\n".join(PAYLOADS)


def pages(folder, diagnoses):
    """A report and a tree whose every text is an attack."""
    example = {"prompt": EVIL, "chosen": EVIL, "rejected": EVIL, "margin": -1.0}
    evil = replace(diagnoses["length"], model=EVIL, data=EVIL, examples=[example], left_out={EVIL: 1})
    report = write_report([diagnoses["perfect"], evil], str(folder))
    kept = node(EVIL, node(EVIL, visits=2.0), visits=3.0, is_committed=True)
    tree = folder / "tree.html"
    record = TreeRecord(node("", kept, node(EVIL)), EVIL, EVIL)
    tree.write_text(to_html(record, title=EVIL, stats={EVIL: 1}), "utf-8")
    return report, tree


CONTEXT = ("swapped_prompt", "turn_removal")


def test_optional_sections_are_shown_only_where_they_were_run(tmp_path, diagnoses):
    plain, options = diagnoses["perfect"], DiagnosisConfig(resamples=20)
    noise = measure_noise(np.ones(9), {0.25: (EVIL, np.zeros(9))}, left_out=1, config=options)
    curve = measure_best_of_n([[1.0, 2.0]] * 3, [[0.0, 1.0]] * 3, options, gold_name=EVIL, left_out={EVIL: 1})
    without = write_report([plain], str(tmp_path / "a")).read_text(encoding="utf-8")
    assert "label_noise" not in without and "best_of_n" not in without and "Not run" not in without
    page = write_report([plain, replace(plain, model="b", label_noise=noise, best_of_n=curve)], str(tmp_path / "b"))
    html = page.read_text(encoding="utf-8")
    assert "swapped_prompt" not in without
    for name in ("label_noise", "best_of_n"):
        assert f'id="{name}"' in html
    assert html.count("Not run: ") == 2 and "accuracy lost with 25 % of training labels flipped" in html
    assert "nan" not in check_page(html, None).text


def test_measures_of_the_context_are_shown_with_what_was_left_out_or_why_they_are_missing(tmp_path, diagnoses):
    options, numbers = DiagnosisConfig(resamples=20), np.arange(40)
    rewards = np.random.default_rng(0).normal(size=(40, 2, 2))
    swapped = measure_swapped_prompt(rewards, numbers, numbers // 2, numbers, options, left_out={EVIL: 3})
    found = replace(diagnoses["perfect"], swapped_prompt=swapped, context_problems={"turn_removal": EVIL})
    page = write_report([found, replace(diagnoses["end"], model="b")], str(tmp_path))
    html = page.read_text(encoding="utf-8")
    assert 'id="swapped_prompt"' in html and 'id="turn_removal"' in html and 'id="early_context"' not in html
    sections = {name: html.split(f'<section id="{name}">')[1].split("</section>")[0] for name in CONTEXT}
    assert ["<svg" in sections[name] for name in CONTEXT] == [True, False]
    assert "40 pairs with 40 distinct prompts" in html and "; left out: 3 (" in html
    assert html.count("`context_measures` does not name it") == 2 and "more reward under the own prompt" in html
    assert check_page(html, None).scripts == []


def test_pages_keep_what_all_pages_promise(tmp_path, diagnoses):
    report, tree = (page.read_text(encoding="utf-8") for page in pages(tmp_path, diagnoses))
    for source, scripts in ((report, 0), (tree, 2)):
        page = check_page(source, None)
        assert len(page.scripts) == scripts and page.text.count("it ran") > 10
    assert all(word not in Page(report).text.lower() for word in ("suspect", "unclear", "not seen"))


def test_mistakes_are_shown_as_conversations(tmp_path, diagnoses):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": EVIL * 2}]
    answer = [{"role": "assistant", "content": "Grab it."}]
    example = {"prompt": turns, "chosen": answer, "rejected": "As text.", "margin": -1.0}
    report = write_report([replace(diagnoses["perfect"], examples=[example])], str(tmp_path))
    page = check_page(report.read_text(encoding="utf-8"), None)
    assert [text for _, text in page.all("span", "role")] == ["system", "user", "assistant", "response"]
    assert (
        len([text for _, text in page.all("details") if f"{len(EVIL * 2):,} characters" in text]) == 2
    )  # and its pair


def test_the_page_says_how_the_models_did_at_a_glance(tmp_path, diagnoses):
    shown = [diagnoses["perfect"], diagnoses["constant"]]
    page = check_page(write_report(shown, str(tmp_path)).read_text(encoding="utf-8"), None)
    rows = page.source.split('<table class="glance">')[1].split("</table>")[0].split("<tr>")[3:]
    names = ["accuracy", "masking", "cue", "length", "attention", "calibration"]
    for name, row in zip(names, rows, strict=True):
        cells = re.findall(r'<span class="(badge \w+|soft small)">([^<]*)</span>', row)
        expected = [each.findings()[name].verdict if name in each.findings() else "not run" for each in shown]
        assert f'href="#{name}"' in row and [text for _, text in cells] == expected


def title_after_running(page, profile) -> str:
    """The page's title after a browser has run its scripts."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--disable-quic", f"--user-data-dir={profile}"]
    run = subprocess.run(
        ["chromium", *options, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "</html>" in run.stdout
    return run.stdout.split("<title>")[1].split("</title>")[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a chromium to run the pages in")
def test_a_browser_runs_nothing_of_it(tmp_path, diagnoses):
    control = tmp_path / "control.html"
    for payload in PAYLOADS[:4] + PAYLOADS[5:6]:  # the harness sees an attack that is not escaped
        control.write_text(f"<!doctype html><html><head><title>calm</title></head><body>{payload}</body></html>")
        assert title_after_running(control, tmp_path / "profile") == "it ran", payload
    for page in pages(tmp_path, diagnoses):
        assert title_after_running(page, tmp_path / "profile") != "it ran"


MEASURE = """<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const sizes = [...page.querySelectorAll("svg")].map(svg => svg.clientWidth / svg.viewBox.baseVal.width * 12);
  document.title = [root.scrollWidth, root.clientWidth, Math.min(99, ...sizes)].join(" ");
}</script>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a chromium to lay the pages out")
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_do_not_scroll_sideways_and_plots_can_be_read(tmp_path, diagnoses, width):
    harness = tmp_path / "harness.html"
    wide = '<!doctype html><div style="width: 500px">wide</div>'  # the harness sees what is too wide
    for source in (wide, *(page.read_text(encoding="utf-8") for page in pages(tmp_path, diagnoses))):
        frame = f'<iframe width="{width}" height="800" frameborder="0" srcdoc="{escape(source, quote=True)}"></iframe>'
        head = f"<!doctype html><html><head><title>?</title>{MEASURE}</head>"
        harness.write_text(f"{head}<body>{frame}</body></html>", encoding="utf-8")
        scroll, client, size = map(float, title_after_running(harness, tmp_path / "profile").split())
        if source is wide:
            assert (scroll > client) == (width == 390)
        else:
            assert scroll == client and width - 20 <= client <= width  # less a bar for scrolling down
            assert size >= 11
