"""Files for those who work on the project say what holds."""

import re

import pytest
import yaml
from support.datasets import ROOT

import hf_interdistill


@pytest.mark.parametrize(
    "path", [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"], ids=lambda path: path.name
)
def test_files_in_yaml_are_mappings(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_workflow_runs_the_projects_own_script():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in commands and (ROOT / ".ci" / "run").is_file()


def test_the_layout_names_every_folder_and_no_other():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `hf_interdistill/(\w+)` \|", text, re.MULTILINE)
    there = {path.parent.name for path in (ROOT / "hf_interdistill").glob("*/__init__.py")}
    assert sorted(named) == sorted(there)


def test_the_paths_that_it_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:hf_interdistill|interaction|rain|diagnostics|reward_benchmarks|tests|docs)/[\w/.]+)`", text)
    )
    assert len(named) > 15
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "hf_interdistill" / path).exists(), path


def test_the_tests_that_pages_name_are_there():
    pages = ("tests/README.md", "README.md", "CONTRIBUTING.md", "docs/security.md", "docs/families.md")
    named = set()
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        start = "" if page == "tests/README.md" else "tests/"
        named |= set(re.findall(rf"`{start}((?:\w+/)*\w+\.py)(?:::(\w+))?`", text))
    assert len(named) > 45
    for path, test in named:
        assert (ROOT / "tests" / path).is_file(), path
        assert f"def {test}(" in (ROOT / "tests" / path).read_text(encoding="utf-8") or not test, (path, test)


def test_the_changelog_begins_with_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", text, re.MULTILINE)[1] == hf_interdistill.__version__


def test_ruff_is_the_same_everywhere():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (ruff,) = [repo["rev"] for repo in hooks["repos"] if "ruff" in repo["repo"]]
    assert f"ruff=={ruff.removeprefix('v')}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
