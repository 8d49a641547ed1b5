"""Rows of the table of numbers and notes on the page, of the measures that ask whether the prompt is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..measures.estimates import Estimate
from ..measures.turn_removal import PLACES
from ..result import Diagnosis

Row = tuple[str, list[Estimate | None], str]


def context_rows(diagnoses: Sequence[Diagnosis]) -> list[Row]:
    """Label, one estimate per model, and kind of number."""

    def row(name: str, label: str, kind: str, read: Callable) -> Row:
        measures = [getattr(each, name) for each in diagnoses]
        return label, [None if measure is None else read(measure) for measure in measures], kind

    rows = [
        row("swapped_prompt", "more reward under the own prompt", "percent", lambda found: found.own),
        row("swapped_prompt", "own prompt minus another (standard deviations)", "number", lambda found: found.gain),
        row("early_context", "instruction at the beginning followed", "percent", lambda found: found.first),
        row("early_context", "the same at the end of the prompt", "percent", lambda found: found.last),
        row("early_context", "moved by an instruction at the beginning", "percent", lambda found: found.moved_first),
        row("early_context", "the same at the end of the prompt", "percent", lambda found: found.moved_last),
    ]
    for place in PLACES:
        label = f"change without the {place} turn (standard deviations)"
        rows.append(row("turn_removal", label, "number", lambda found, at=place: getattr(found, at).change))
        label = f"the same without the {place} turn, as a share of its control"
        rows.append(row("turn_removal", label, "percent", lambda found, at=place: getattr(found, at).share))
    return [each for each in rows if any(each[1])]


def context_notes(diagnoses: Sequence[Diagnosis], name: str) -> list[str]:
    """How much a measure rests on, and what was left out: a sentence for each model, or one where all are alike."""
    notes: dict[str, Callable] = {
        "swapped_prompt": _of_swaps,
        "early_context": _of_instructions,
        "turn_removal": _of_turns,
    }
    if name not in notes:
        return []
    found = [(each.model, getattr(each, name)) for each in diagnoses if getattr(each, name) is not None]
    sentences = [(model, f"{notes[name](measure)}{_left_out(measure.left_out)}.") for model, measure in found]
    if len({sentence for _, sentence in sentences}) == 1:
        return [sentences[0][1]]
    return [f"{model}: {sentence}" for model, sentence in sentences]


def _left_out(left_out: dict[str, int]) -> str:
    reasons = ", ".join(f"{count} ({reason})" for reason, count in left_out.items())
    return f"; left out: {reasons}" if reasons else ""


def _of_swaps(found) -> str:
    apart = f"two that were swapped differ by {found.tokens_apart:.1f} tokens on average"
    return f"{found.pairs} pairs with {found.prompts} distinct prompts; {apart}"


def _of_instructions(found) -> str:
    kinds = ", ".join(
        f"{kind} {100 * each['first'].value:.0f} % and {100 * each['last'].value:.0f} %"
        for kind, each in found.kinds.items()
    )
    return (
        f"{found.first.pairs} prompts, each with both instructions; followed at the beginning and at the end, by what "
        f"they ask for: {kinds}"
    )


def _of_turns(found) -> str:
    tokens = [(place, getattr(found, place)) for place in PLACES]
    sizes = ", ".join(f"{place} {turn.tokens:.0f}" for place, turn in tokens if turn.change.pairs)
    return f"{found.conversations} conversations; tokens of their turns on average: {sizes}"
