"""Hides messages of libraries at the start of every command about which users can do nothing; all others are shown."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Kind and beginning of the text.
_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    # TRL's and PEFT's use of names that transformers 5.23 has changed.
    (FutureWarning, r"`(is_)?gradient_checkpointing(_kwargs)?` is deprecated and will be removed in v6"),
    # transformers' default, on machines without a GPU.
    (UserWarning, r"'pin_memory' argument is set as true but"),
)
_LOGS = {
    # bitsandbytes, which PEFT imports: faster 4-bit layers on CPUs, for those who have the package `kernels`.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community",
    # transformers then sorts checkpoints by their step, which is as good.
    "transformers.trainer_utils": r"mtime may not be reliable on this filesystem",
}


class _Without(logging.Filter):
    """Drops records whose text begins like a pattern, up to warnings; never errors."""

    def __init__(self, pattern: str):
        super().__init__()
        self.pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or not self.pattern.match(record.getMessage())


@contextmanager
def known_noise_silenced() -> Iterator[None]:
    """Inside the block (a command) those messages are not shown."""
    filters = [(logging.getLogger(name), _Without(pattern)) for name, pattern in _LOGS.items()]
    with warnings.catch_warnings():
        for category, message in _WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        for logger, each in filters:
            logger.addFilter(each)
        try:
            yield
        finally:
            for logger, each in filters:
                logger.removeFilter(each)
