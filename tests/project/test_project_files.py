"""Files for those who work on the project say what holds."""

import re

import pytest
import yaml
from support.datasets import ROOT

import hf_interdistill

PACKAGE = ROOT / "hf_interdistill"
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))


def text_of(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def workflow() -> dict:
    return yaml.safe_load(text_of(".github", "workflows", "ci.yml"))


@pytest.mark.parametrize(
    "path", [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"], ids=lambda path: path.name
)
def test_files_in_yaml_are_mappings(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_what_github_requires(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    labels = [field["attributes"]["label"] for field in fields]
    assert len(labels) == len(set(labels)) > 0
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_there_are_issue_forms():
    assert [path.stem for path in FORMS] == ["bug_report", "feature_request"]


def test_the_workflow_runs_the_projects_own_script():
    commands = [step.get("run") for job in workflow()["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in commands and (ROOT / ".ci" / "run").is_file()


def test_the_workflow_tests_every_python_that_the_package_names():
    jobs = workflow()["jobs"]
    (gate,) = [step["with"] for step in jobs["all"]["steps"] if "setup-python" in step.get("uses", "")]
    tested = [gate["python-version"], *(each["version"] for each in jobs["python"]["strategy"]["matrix"]["include"])]
    assert sorted(tested) == sorted(re.findall(r"Python :: (3\.\d+)", text_of("pyproject.toml")))


def test_the_workflow_calls_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    wanted = {each["target"] for each in workflow()["jobs"]["python"]["strategy"]["matrix"]["include"]}
    wanted |= set(re.findall(r"^make ([a-z-]+)", text_of(".ci", "run"), re.MULTILINE))
    for line in re.findall(r"\bmake ((?:[a-z]+(?:-[a-z]+)*\b ?)+)", text_of("CONTRIBUTING.md")):
        wanted |= set(line.split())
    assert len(wanted) > 8 and wanted <= targets


def test_the_paths_that_the_guide_names_are_there():
    rooms = "hf_interdistill|interaction|attention|engine|rain|diagnostics|reward_benchmarks|tests|docs|recipes"
    named = set(re.findall(rf"`((?:{rooms})/[\w/.]+)`", text_of("CONTRIBUTING.md")))
    assert len(named) > 40
    bases = [ROOT, PACKAGE, PACKAGE / "interaction", PACKAGE / "rain"]
    for path in named:
        assert any((base / path).exists() for base in bases), path


def test_the_names_in_code_that_the_guide_gives_are_there():
    paths = [path for folder in (PACKAGE, ROOT / "tests") for path in folder.rglob("*.py")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    names = set(re.findall(r"`([A-Z]\w+(?:\.\w+)?)`", text_of("CONTRIBUTING.md")))
    assert len(names) > 15
    for name in names:
        assert all(re.search(rf"\b{part}\b", source) for part in name.split(".")), name


def test_the_tests_that_pages_name_are_there():
    pages = ["tests/README.md", "README.md", "CONTRIBUTING.md"]
    pages += [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
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
    newest = re.search(r"^## \[?(\d[\w.]*)", text_of("CHANGELOG.md"), re.MULTILINE)[1]
    assert newest == hf_interdistill.__version__


def test_ruff_is_the_same_everywhere():
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))
    (ruff,) = [repo["rev"] for repo in hooks["repos"] if "ruff" in repo["repo"]]
    assert f"ruff=={ruff.removeprefix('v')}" in text_of("constraints.txt").splitlines()
