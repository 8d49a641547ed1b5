"""Searches whose passes are replayed."""

from __future__ import annotations

from hf_interdistill.rain.api.decoder import RainDecoder
from support.rain import PROMPTS, encode


def search(model, tokenizer, config, scorer, **settings):
    decoder = RainDecoder(tokenizer, config, scorer)
    inputs = {name: values.to(model.device) for name, values in encode(tokenizer, PROMPTS).items()}
    settings = {"max_new_tokens": 12, "return_dict_in_generate": True, **settings}
    return model.generate(**inputs, custom_generate=decoder, **settings)
