"""`strategy="rain"` for every `generate`: the one place that touches `GenerationMixin`.

transformers has no registry of strategy names, and refuses an unknown `strategy`. So `register_rain` puts one wrapper
round `GenerationMixin.generate`, which hands calls with `strategy="rain"` (or a `RainDecoder` as `custom_generate`) to
RAIN and all others on, untouched. It can be called again without effect, and `unregister_rain` takes it off.

Importing `hf_interdistill` calls `register_when_loaded`. If transformers' generation is loaded already, the wrapper is
put on at once. Otherwise nothing is imported: a finder on `sys.meta_path` waits for `transformers.generation.utils`,
puts the wrapper on when that has run, and leaves. This module imports neither torch nor transformers.
"""

from __future__ import annotations

import functools
import importlib.abc
import sys
import warnings

_MODULE = "transformers.generation.utils"
_MARK = "_rain_wrapped"
_PROCESSORS_PLACE = 2  # of `logits_processor` among the positional arguments of generate


def register_rain() -> None:
    """Make `generate(strategy="rain", ...)` work on every model; without effect where it does already."""
    from transformers.generation.utils import GenerationMixin

    _remove_finder()
    if not hasattr(GenerationMixin.generate, _MARK):
        GenerationMixin.generate = _wrap(GenerationMixin.generate)


def unregister_rain() -> None:
    """Put transformers' own `generate` back; without effect where it is in place."""
    _remove_finder()
    mixin = getattr(sys.modules.get(_MODULE), "GenerationMixin", None)
    original = getattr(getattr(mixin, "generate", None), _MARK, None)
    if original is not None:
        mixin.generate = original


def is_rain_registered() -> bool:
    """Whether the wrapper is in place, or will be as soon as transformers' generation is imported."""
    mixin = getattr(sys.modules.get(_MODULE), "GenerationMixin", None)
    return hasattr(getattr(mixin, "generate", None), _MARK) or any(isinstance(f, _Finder) for f in sys.meta_path)


def register_when_loaded() -> None:
    """Register now if transformers' generation is loaded, else when it gets loaded."""
    if hasattr(sys.modules.get(_MODULE), "GenerationMixin"):
        register_rain()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _wrap(original):
    @functools.wraps(original)
    def generate(self, *args, **kwargs):
        is_decoder = getattr(kwargs.get("custom_generate"), "is_rain_decoder", False)
        if kwargs.get("strategy") != "rain" and (not is_decoder or "strategy" in kwargs):
            _tell_processors(args, kwargs)
            return original(self, *args, **kwargs)
        from .generate import generate_rain

        return generate_rain(functools.partial(original, self), self, args, kwargs)

    setattr(generate, _MARK, original)
    return generate


def _tell_processors(args: tuple, kwargs: dict) -> None:
    """Show the call to a `RAINLogitsProcessor` in it; generate tells processors nothing of its settings."""
    processors = args[_PROCESSORS_PLACE] if len(args) > _PROCESSORS_PLACE else kwargs.get("logits_processor")
    for processor in processors or ():
        if getattr(processor, "is_rain_processor", False):
            processor.learn_call(args, kwargs)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `transformers.generation.utils` as everybody else would, with a loader that registers afterwards."""

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
    """A loader that steps aside: module and spec end up with the real one."""

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
            # An import of transformers must not fail because of us.
            warnings.warn(
                "This version of transformers has no `GenerationMixin.generate`, so `strategy='rain'` is not "
                "available. Use `hf_interdistill.RainDecoder` as `custom_generate`.",
                stacklevel=2,
            )
        elif not hasattr(module.GenerationMixin.generate, _MARK):
            module.GenerationMixin.generate = _wrap(module.GenerationMixin.generate)


def _remove_finder() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
