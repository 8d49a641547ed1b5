"""Text of models and data on the pages is shown, and never runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
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


def test_optional_sections_are_shown_only_where_they_were_run(tmp_path, diagnoses):
    plain, options = diagnoses["perfect"], DiagnosisConfig(resamples=20)
    noise = measure_noise(np.ones(9), {0.25: (EVIL, np.zeros(9))}, left_out=1, config=options)
    curve = measure_best_of_n([[1.0, 2.0]] * 3, [[0.0, 1.0]] * 3, options, gold_name=EVIL, left_out={EVIL: 1})
    without = write_report([plain], str(tmp_path / "a")).read_text(encoding="utf-8")
    assert "label_noise" not in without and "best_of_n" not in without and "not run" not in without
    page = write_report([plain, replace(plain, model="b", label_noise=noise, best_of_n=curve)], str(tmp_path / "b"))
    html = page.read_text(encoding="utf-8")
    assert "swapped_prompt" not in without
    for name in ("label_noise", "best_of_n"):
        assert f'id="{name}"' in html and (page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert html.count("Not run: ") == 2 and "accuracy lost with 25 % of training labels flipped" in html
    assert "<script" not in html and "<iframe" not in html
    assert "nan" not in re.sub(r'src="data:[^"]*"', "", html)


def test_measures_of_the_context_are_shown_with_what_was_left_out_or_why_they_are_missing(tmp_path, diagnoses):
    options, numbers = DiagnosisConfig(resamples=20), np.arange(40)
    rewards = np.random.default_rng(0).normal(size=(40, 2, 2))
    swapped = measure_swapped_prompt(rewards, numbers, numbers // 2, numbers, options, left_out={EVIL: 3})
    found = replace(diagnoses["perfect"], swapped_prompt=swapped, context_problems={"turn_removal": EVIL})
    page = write_report([found, replace(diagnoses["end"], model="b")], str(tmp_path))
    html = page.read_text(encoding="utf-8")
    assert 'id="swapped_prompt"' in html and 'id="turn_removal"' in html and 'id="early_context"' not in html
    assert (tmp_path / "swapped_prompt.png").exists() and not (tmp_path / "turn_removal.png").exists()
    assert "40 pairs with 40 distinct prompts" in html and "; left out: 3 (" in html
    assert html.count("`context_measures` does not name it") == 2 and "more reward under the own prompt" in html
    assert "<script" not in html and "<iframe" not in html


def test_names_with_dollars_are_no_formulas(tmp_path, diagnoses):
    """Matplotlib reads `$...$` as a formula, and a broken one is an error."""
    report = write_report([replace(diagnoses["length"], model=r"a$\frac$b", data="$_$")], str(tmp_path))
    assert r"a$\frac$b" in report.read_text(encoding="utf-8")


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
