"""Style of prose: words that this project does not use, and sentences of at most 25 words.

    python .ci/prose.py [FILE ...]

Words are looked for in Markdown and in the package's docstrings, comments and messages. The length of sentences is
checked in README.md, docs/ and recipes/. Ends with 1 if anything was found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 25
_COUNTED = r"rows?|lines?|texts|pairs|tokens|seconds|requests|versions|passes|values?|numbers|nats"
_COUNTED_PER = r"text|pair|step|stage|prompt|model|token|row|line|batch|seed|run|arm|test|request|answer|process"
# What is not plain technical English here, and what to write for it.
WORDS = {
    r"goes on after": "resumes after",
    r"(?:can be )?gone on from": "resumed from",
    r"on line": "live",
    r"for want of": "without",
    r"is said once": "is logged once",
    r"(?:are|is) not to be had": "is not available",
    r"by heart": "memorize",
    r"may ride along|riding along": "speculative",
    r"of strangers": "untrusted",
    r"which way is good": "whether higher is better",
    r"read[- ]ahead": "speculative",
    r"begun ahead": "speculative",
    r"neighbour\w*": "neighbor",
    r"end to end rows": "concatenated rows",
    r"(?:was|were) at hand": "was available",
    r"worked out, not measured": "calculated, not measured",
    r"hangs? on": "depends on",
    r"ties apart": "ties counted separately",
    r"broken off": "interrupted",
    r"as it comes": "as published",
    rf"(?:{_COUNTED}) an? (?:{_COUNTED_PER})(?! (?:is|was|has|can|may|must))": "per text, per step",
}
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+")
_NO_PROSE = re.compile(r"\s*$|[|#<@]|!\[|:::|---| {4}")
# A colon ends one too: what follows is a sentence or a list of its own.
_SENTENCE_END = re.compile(r"(?<=[.!?:;])[*)`\"]*\s+|(?<=[.!?:;][*)`\"])\s+")
_WRITTEN_BY_SCRIPTS = (
    *("docs/families.md", "docs/reference/cli.md"),
    *(f"recipes/studies/{name}/table.md" for name in ("attention_hacking", "ensembles")),
)


def wrong_words(text: str) -> Iterator[tuple[int, str]]:
    """The line of each such word, and what to write."""
    for pattern, instead in WORDS.items():
        spaced = pattern.replace(" ", r"\s+")
        for match in re.finditer(rf"\b(?:{spaced})\b", text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, f"`{' '.join(match[0].split())}`: write `{instead}`"


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs and list items of Markdown, and the lines that they begin in."""
    is_code, start, lines = False, 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        is_fence = line.lstrip().startswith("```")
        is_prose = not (is_code or is_fence or _NO_PROSE.match(line))
        if lines and (not is_prose or _ITEM.match(line)):
            yield start, " ".join(lines)
            lines = []
        if is_prose:
            start = start if lines else number
            lines.append(_ITEM.sub("", line).strip())
        is_code ^= is_fence


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of Markdown prose, and the line that their paragraph begins in."""
    for line, block in blocks(text):
        for sentence in _SENTENCE_END.split(block):
            yield line, sentence


def words_of(sentence: str) -> int:
    """Words as a reader counts them: code and a link's text are what they show, a bracketed figure is none."""
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", sentence)
    shown = re.sub(r"`[^`]*`", "code", shown)
    return len(re.findall(r"[A-Za-z][\w'-]*", shown))


def too_long(text: str) -> Iterator[tuple[int, str]]:
    for line, sentence in sentences(text):
        if (count := words_of(sentence)) > MOST_WORDS:
            yield line, f"a sentence of {count} words, more than {MOST_WORDS}: {sentence[:70]}..."


def pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    found += [ROOT / "tests" / "README.md", *(ROOT / "hf_interdistill").rglob("*.py")]
    return sorted(found)


def faults(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    found = list(wrong_words(text))
    if name.startswith(("README.md", "docs/", "recipes/")) and name not in _WRITTEN_BY_SCRIPTS:
        found += too_long(text)
    return [f"{name}:{line}: {what}" for line, what in sorted(found)]


def main(names: list[str]) -> int:
    found = [fault for path in ([Path(name).resolve() for name in names] or pages()) for fault in faults(path)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
