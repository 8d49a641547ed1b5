"""MkDocs hook: shows pages from outside `docs/`, and makes links hold both in the repository and on the site.

A recipe's page keeps its path in the repository; files in `docs/` lose that first part. Links in Markdown are written
for the repository, and this hook rewrites them for the site, so that no page needs a second copy. A linked file that
is no page (YAML, JSON, code) is copied as it is.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
# Pages outside `docs/`: their path in the repository, and on the site.
PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/reporting.md",
    "tests/README.md": "project/tests.md",
    **{name: name for name in (str(path.relative_to(ROOT)) for path in sorted((ROOT / "recipes").rglob("*.md")))},
}
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def on_files(files: Files, config) -> Files:
    """Add the pages, and each file of the repository that a page links to."""
    for name, path in PAGES.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / name), inclusion=InclusionLevel.INCLUDED))
    for page in list(files.documentation_pages()):
        for target in _targets(page):
            if files.get_file_from_path(_site_path(target)) is None:
                files.append(File.generated(config, _site_path(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Links of the repository as links of the site."""
    folder = posixpath.dirname(_repository_path(page.file))

    def rewritten(match: re.Match) -> str:
        target = _resolved(folder, match[2])
        if target is None:
            return match[0]
        path = _site_path(target)
        return match[1] + posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".") + match[3]

    return _LINK.sub(rewritten, markdown)


def _targets(page: File) -> list[str]:
    """Files of the repository that a page links to, as paths from the root."""
    text = _CODE.sub("", Path(page.abs_src_path).read_text(encoding="utf-8"))
    folder = posixpath.dirname(_repository_path(page))
    found = [_resolved(folder, match[2]) for match in _LINK.finditer(text)]
    return [each for each in found if each is not None]


def _repository_path(page: File) -> str:
    return Path(os.path.relpath(page.abs_src_path, ROOT)).as_posix()


def _resolved(folder: str, link: str) -> str | None:
    """The file that a link names, from the root of the repository; `None` for the web and for what is not there."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join(folder, link))
    path = path + "/README.md" if (ROOT / path).is_dir() else path
    return path if (ROOT / path).is_file() else None


def _site_path(path: str) -> str:
    return PAGES.get(path, path.removeprefix("docs/"))
