"""Settings of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.fields import nearest_name, require_positive

STAGES = 5
CONTEXT_MEASURES = ("swapped_prompt", "early_context", "turn_removal")


@dataclass(frozen=True)
class DiagnosisConfig:
    """What is measured, and how exactly.

    Args:
        fractions: shares of the content that are removed, from the start and, as a control, from the end.
        cue: phrase that is put at the end of a response.
        attention_layers: layers whose attention is measured (their mean), negative from the end.
        context_measures: which of `CONTEXT_MEASURES` are made, which ask whether the prompt is read. Each reads more
            texts: two per pair, eight per prompt, and four per removed turn of a pair. `()` for none.
        bins: bins of equal width behind the expected calibration error.
        resamples: bootstrap resamples behind each 95 % interval.
        limit: pairs, and prompts with candidates, to measure; all if `None`.
        max_length: longest text in tokens; longer pairs are left out and counted. `None`: what the model can read.
        batch_size: texts per forward pass.
        seed: of the bootstrap, of the random order behind calibration, and of the order of prompts of equal length,
            neighbors in which are swapped.
    """

    fractions: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    cue: str = " I hope this helps! Let me know if you have any other questions."
    attention_layers: tuple[int, ...] = (-1,)
    context_measures: tuple[str, ...] = CONTEXT_MEASURES
    bins: int = 10
    resamples: int = 1000
    limit: int | None = None
    max_length: int | None = None
    batch_size: int = 16
    seed: int = 0

    def result_settings(self) -> dict:
        """The settings that the record of a pair depends on; the others only matter for the use of records."""
        return {name: getattr(self, name) for name in ("fractions", "cue", "attention_layers", "max_length")}

    def __post_init__(self):
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise ValueError(f"`fractions` are {self.fractions}, but each must lie between 0 and 1, at least one.")
        if list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError(f"`fractions` are {self.fractions}, but must rise, each named once.")
        if not self.cue.strip():
            raise ValueError(f"`cue` is {self.cue!r}, but must be a phrase to put at the end of a response.")
        self._check_context_measures()
        for name in ("bins", "resamples", "batch_size"):
            require_positive(name, getattr(self, name))
        for name in ("limit", "max_length"):
            require_positive(name, getattr(self, name), is_optional=True)

    def _check_context_measures(self) -> None:
        given, known = self.context_measures, ", ".join(CONTEXT_MEASURES)
        if isinstance(given, str) or len(set(given)) < len(given):
            raise ValueError(f"`context_measures` is {given!r}, but must list some of {known}, each once, or none.")
        for name in given:
            if name not in CONTEXT_MEASURES:
                near = nearest_name(name, CONTEXT_MEASURES)
                hint = f" Is `{near}` meant?" if near else ""
                raise ValueError(f"`context_measures` names {name!r}, but known are {known}.{hint}")
