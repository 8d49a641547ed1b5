"""The table of docs/families.md: which cells it has, how it is written, how it is parsed.

FAMILIES_JSON=runs/families.json python -m pytest tests/interaction/test_families.py
python tests/support/families_table.py runs/families.json docs/families.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

STUDENTS = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "phi3", "olmo2",
    "stablelm", "starcoder2", "opt", "falcon", "bloom",
)  # fmt: skip
TEACHERS = ("bert", "roberta", "modernbert", "electra", "mpnet", "deberta-v2", *STUDENTS)
ATTENTIONS, DTYPES, TUNINGS = ("sdpa", "eager"), ("float32", "bfloat16"), ("full", "LoRA")
STUDENT_COLUMNS = tuple(f"{a} {d} {t}" for a in ATTENTIONS for d in DTYPES for t in TUNINGS)
TEACHER_COLUMNS = tuple(f"{a} {d}" for a in ATTENTIONS for d in DTYPES)

_HEAD = """# Families of models

What one training step did, by family of model: tiny models with random weights, a real
`InteractionDistillationTrainer` with `alignment_weight=1`, the last layer aligned. `yes` means three things. The loss
was finite and above zero. The alignment loss alone sent finite nonzero gradients to queries and keys of the aligned
layer. The weights which compute them changed. A letter stands for another outcome, explained below.
Teachers from Llama on are decoders whose causal mask is lifted; their windows, if any, hold a whole row.

Seen with {versions}. Other versions may offer other kinds of attention, or other heads.

`tests/support/families_table.py` writes this file from the results of the tests, which fail if the two differ. Tiny
models show that a family works with the trainer, not how well it learns.
"""
_SHARING = """
## Prompt and both responses in one row

What `share_prompt="auto"` did with the families above, in every cell that trains.

| student | one row per pair |
| --- | --- |
"""


def render(outcomes: dict[str, dict], versions: str) -> str:
    """The page.

    Args:
        versions: of what the tests ran with.
        outcomes: by `"student llama: sdpa float32 full"`, `{"trained": "yes" or why not, "sharing": text}`.
    """
    reasons: list[str] = []

    def cell(name: str) -> str:
        trained = outcomes[name]["trained"]
        if trained == "yes":
            return trained
        if trained not in reasons:
            reasons.append(trained)
        return chr(ord("a") + reasons.index(trained))

    parts = [_HEAD.replace("{versions}", versions)]
    for role, families, columns in (("student", STUDENTS, STUDENT_COLUMNS), ("teacher", TEACHERS, TEACHER_COLUMNS)):
        parts.append(
            f"\n## {role.capitalize()}s\n\n| {' | '.join((role, *columns))} |\n{'| --- ' * (len(columns) + 1)}|\n"
        )
        for family in families:
            row = [cell(f"{role} {family}: {column}") for column in columns]
            parts.append(f"| {' | '.join((family, *row))} |\n")
    parts.append(_SHARING)
    for family in STUDENTS:
        cells = [outcomes[f"student {family}: {column}"] for column in STUDENT_COLUMNS]
        sharing = sorted({each["sharing"] for each in cells if each["trained"] == "yes"})
        if sharing:
            parts.append(f"| {family} | {'; '.join(sharing)} |\n")
    parts.append("\n## Letters\n\n")
    parts.extend(f"- {chr(ord('a') + number)}: {reason}\n" for number, reason in enumerate(reasons))
    return "".join(parts)


def read_versions(page: str) -> str:
    """What the page was seen with."""
    return re.search(r"^Seen with (.*)\. Other versions", page, re.MULTILINE)[1]


def read(page: str) -> dict[str, dict]:
    """Parse the outcomes of a page."""
    letters = dict(re.findall(r"^- ([a-z]): (.*)$", page, re.MULTILINE))
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if line[:2] == "| "]
    sharing = {row[0]: row[1] for row in rows if len(row) == 2}
    outcomes: dict[str, dict] = {}
    for role, families, columns in (("student", STUDENTS, STUDENT_COLUMNS), ("teacher", TEACHERS, TEACHER_COLUMNS)):
        for row in rows:
            if len(row) == len(columns) + 1 and row[0] in families:
                for column, cell in zip(columns, row[1:], strict=True):
                    trained = letters.get(cell, cell)
                    shared = sharing.get(row[0], "") if role == "student" and trained == "yes" else ""
                    outcomes[f"{role} {row[0]}: {column}"] = {"trained": trained, "sharing": shared}
    return outcomes


if __name__ == "__main__":
    source, target = sys.argv[1:]
    seen = json.loads(Path(source).read_text(encoding="utf-8"))
    Path(target).write_text(render(seen["cells"], seen["versions"]), encoding="utf-8")
