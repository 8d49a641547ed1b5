"""`strategy="rain"` for every `generate`: the only module that modifies `GenerationMixin`.

transformers has no registry of strategies, and refuses an unknown `strategy`. So `register_rain` wraps
`GenerationMixin.generate`. The wrapper passes calls with a strategy of `STRATEGIES` (or a `RainDecoder` as
`custom_generate`) to the search engine, and all other calls unchanged to transformers. `unregister_rain` removes it.
Repeated calls of either have no effect.

Importing `hf_interdistill` calls `register_when_loaded`. If transformers' generation module is already loaded, it is
wrapped at once. Otherwise nothing is imported: a finder on `sys.meta_path` waits for `transformers.generation.utils`,
wraps `generate` after that module has run, and removes itself. This module imports neither torch nor transformers.
"""

from __future__ import annotations

import functools
import importlib.abc
import sys
import warnings

from ..strategies import STRATEGIES

_MODULE = "transformers.generation.utils"
_MARK = "_rain_wrapped"
_PROCESSORS_INDEX = 2  # position of `logits_processor` among the arguments of generate


def register_rain() -> None:
    """Make `generate(strategy="rain", ...)` and the other strategies work on every model; has no effect if they do."""
    from transformers.generation.utils import GenerationMixin

    _remove_finder()
    if not hasattr(GenerationMixin.generate, _MARK):
        GenerationMixin.generate = _wrap(GenerationMixin.generate)  # type: ignore[method-assign]


def unregister_rain() -> None:
    """Restore transformers' own `generate`; has no effect if it is in place."""
    _remove_finder()
    mixin = getattr(sys.modules.get(_MODULE), "GenerationMixin", None)
    original = getattr(getattr(mixin, "generate", None), _MARK, None)
    if mixin is not None and original is not None:
        mixin.generate = original


def is_rain_registered() -> bool:
    """Whether the wrapper is in place, or will be once transformers' generation module is imported."""
    mixin = getattr(sys.modules.get(_MODULE), "GenerationMixin", None)
    return hasattr(getattr(mixin, "generate", None), _MARK) or any(isinstance(f, _Finder) for f in sys.meta_path)


def register_when_loaded() -> None:
    """Register now if transformers' generation module is loaded, otherwise when it is loaded."""
    if hasattr(sys.modules.get(_MODULE), "GenerationMixin"):
        register_rain()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _wrap(original):
    @functools.wraps(original)
    def generate(self, *args, **kwargs):
        is_decoder = getattr(kwargs.get("custom_generate"), "is_rain_decoder", False)
        is_ours = kwargs.get("strategy") in list(STRATEGIES)
        if not is_ours and (not is_decoder or "strategy" in kwargs):
            if not _record_call(args, kwargs):
                return original(self, *args, **kwargs)
            from .generate import arguments_by_name
            from .streaming import ended_on_error

            with ended_on_error(arguments_by_name(args, kwargs).get("streamer")):
                return original(self, *args, **kwargs)
        from .generate import generate_rain

        return generate_rain(original, self, args, kwargs)

    setattr(generate, _MARK, original)
    return generate


def _record_call(args: tuple, kwargs: dict) -> bool:
    """Pass the arguments of a call to its `RAINLogitsProcessor`, because generate gives processors no settings.

    Returns:
        Whether the call has such a processor.
    """
    processors = args[_PROCESSORS_INDEX] if len(args) > _PROCESSORS_INDEX else kwargs.get("logits_processor")
    own = [each for each in processors or () if getattr(each, "is_rain_processor", False)]
    for processor in own:
        processor.record_call(args, kwargs)
    return bool(own)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `transformers.generation.utils` with the regular finders, and gives it a loader that registers RAIN."""

    def find_spec(self, fullname, path, target=None):
        if fullname != _MODULE:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads the module with the real loader, which module and spec then refer to, and wraps `generate`."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _remove_finder()
        if not hasattr(getattr(module, "GenerationMixin", None), "generate"):
            # This package must not make an import of transformers fail.
            warnings.warn(
                "This version of transformers has no `GenerationMixin.generate`, so `strategy='rain'` is not "
                "available. Use `hf_interdistill.RainDecoder` as `custom_generate`.",
                stacklevel=2,
            )
        elif not hasattr(module.GenerationMixin.generate, _MARK):
            module.GenerationMixin.generate = _wrap(module.GenerationMixin.generate)


def _remove_finder() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
