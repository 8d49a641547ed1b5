"""What is known about a model: results of trials and warnings already given, so that neither is repeated."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)
_BY_MODEL: WeakKeyDictionary = WeakKeyDictionary()
_LOCK = threading.RLock()


class Capabilities:
    """The record of one model."""

    def __init__(self):
        self._reasons: dict[Hashable, str | None] = {}
        self._warned: set[str] = set()

    def unsupported_reason(self, feature: Hashable, probe: Callable[[], str | None]) -> str | None:
        """Why the model does not support a feature, or `None` if it does.

        Args:
            feature: with the circumstances that the answer depends on (dtype, mode, ...).
            probe: finds out; called once for each feature.
        """
        with _LOCK:
            if feature not in self._reasons:
                self._reasons[feature] = probe()
            return self._reasons[feature]

    def warn_once(self, message: str) -> None:
        """Log a warning that has not been given for this model yet."""
        with _LOCK:
            if message in self._warned:
                return
            self._warned.add(message)
        logger.warning(message)


def capabilities_of(model) -> Capabilities:
    """The record of a model; it is freed with the model."""
    with _LOCK:
        return _BY_MODEL.setdefault(model, Capabilities())
