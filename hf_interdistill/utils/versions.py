"""The versions of the dependencies that the tests were run with."""

from __future__ import annotations

import functools
import logging
from importlib.metadata import version

from packaging.version import Version

logger = logging.getLogger(__name__)

# The newest releases that the whole suite has passed with; a test holds constraints.txt to them.
TESTED = {"transformers": "5.24", "trl": "1.16", "torch": "2.14", "accelerate": "1.15"}


@functools.cache
def warn_if_untested() -> None:
    """Warn, once in a process, of installed versions that are newer than those tested."""
    newer = [
        f"{name} {installed} (tested up to {tested})"
        for name, tested in TESTED.items()
        if Version(installed := version(name)).release[:2] > Version(tested).release
    ]
    if newer:
        logger.warning(
            f"hf_interdistill was not tested with {', '.join(newer)}. If something fails, install the tested "
            "versions, or use a newer version of this package."
        )
