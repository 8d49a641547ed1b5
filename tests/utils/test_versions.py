"""Ranges of versions: what is declared is what is run."""

from __future__ import annotations

import ast
import importlib.util
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.datasets import ROOT

PYTHON_FILES = sorted(path for folder in ("hf_interdistill", "recipes") for path in (ROOT / folder).rglob("*.py"))


def declared() -> dict[str, str]:
    """The floor of every dependency in pyproject.toml, extras too (`tomllib` is younger than Python 3.10)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = text[text.index("[project]") : text.index("[project.scripts]")]
    lists = re.findall(r"^(?:dependencies|[a-z]+) = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    found: dict[str, str] = {}
    for quoted in re.findall(r'"([A-Za-z][^"]*>=[^"]*)"', "".join(lists)):
        requirement = Requirement(quoted)
        (floor,) = [each.version for each in requirement.specifier if each.operator == ">="]
        assert found.setdefault(canonicalize_name(requirement.name), floor) == floor, requirement
    return found


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if line and line[0] != "#"}


def test_the_lowest_versions_run_are_the_lowest_declared():
    floors = declared()
    assert len(floors) == 35
    assert floors.pop("triton")  # a gigabyte, for `make test-kernels` alone
    pins = pinned("constraints-lowest.txt")
    assert pins.pop("pyarrow")  # of datasets
    assert pins == floors


def test_the_pinned_versions_are_in_range():
    floors = declared()
    for name, version in pinned("constraints.txt").items():
        if name in floors:
            assert Requirement(f"{name}>={floors[name]}").specifier.contains(version), name


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_python_3_10(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_the_audit_does_not_count_unchecked_packages_as_safe():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    sound = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    unasked = {"name": "c", "skip_reason": "no answer"}
    assert audit.judge({"dependencies": [sound]})[0] == 0
    assert audit.judge({"dependencies": [sound, unasked]})[0] == 2 and audit.judge({"dependencies": []})[0] == 2
    status, lines = audit.judge({"dependencies": [sound, bad, unasked]})
    assert status == 1 and lines[0] == "b 2: CVE-1, mended in 3"
    assert lines[-1] == "2 of 3 versions looked up, 1 with known vulnerabilities."


def test_versions_above_those_tested_are_warned_of_once(monkeypatch, caplog):
    from hf_interdistill.utils import versions

    installed = {**{name: f"{tested}.7" for name, tested in versions.TESTED.items()}, "trl": "99.0.1"}
    monkeypatch.setattr(versions, "version", installed.get)
    versions.warn_if_untested.cache_clear()
    for _ in range(2):
        versions.warn_if_untested()
    assert [record.getMessage() for record in caplog.records if "not tested" in record.getMessage()] == [
        "hf_interdistill was not tested with trl 99.0.1 (tested up to 1.16). If something fails, install the tested "
        "versions, or use a newer version of this package."
    ]
    versions.warn_if_untested.cache_clear()


def test_the_pinned_versions_are_the_newest_tested():
    from hf_interdistill.utils.versions import TESTED

    pins = pinned("constraints.txt")
    for name in ("transformers", "trl", "accelerate"):
        assert pins[name].startswith(f"{TESTED[name]}."), name
