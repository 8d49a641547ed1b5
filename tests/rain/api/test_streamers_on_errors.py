"""A streamer is ended when `generate` fails, so that who waits for its texts goes on."""

import threading

import pytest
from support.rain import PROMPTS, encode, quick_config
from transformers import TextIteratorStreamer

from hf_interdistill import RainDecoder, RAINLogitsProcessor, register_rain, unregister_rain
from hf_interdistill.rain.scorers.base import ScorerError


def scorer_that_fails(after=3):
    calls = []

    def scorer(texts):
        calls.append(texts)
        if len(calls) > after:
            raise RuntimeError("the judge is out")
        return [1.0] * len(texts)

    return scorer


def calls_of(model, tokenizer, streamer):
    """Ways to call `generate` with a streamer and a scorer that fails."""
    config = quick_config()
    decoder = RainDecoder(tokenizer, config, scorer_that_fails())
    by_strategy = {"strategy": "rain", "tokenizer": tokenizer, "rain_config": config, "streamer": streamer}
    processor = RAINLogitsProcessor(model, tokenizer, config, scorer_that_fails(), max_new_tokens=40)
    own = RainDecoder(tokenizer, config, scorer_that_fails(), streamer=streamer)
    return {
        "strategy": ({**by_strategy, "rain_scorer": scorer_that_fails()}, ScorerError),
        "decoder": ({"custom_generate": decoder, "streamer": streamer}, ScorerError),
        "streamer of a decoder": ({"custom_generate": own}, ScorerError),
        "processor": ({"logits_processor": [processor], "streamer": streamer}, ScorerError),
        "refused option": ({**by_strategy, "num_beams": 3}, ValueError),
        "refused input": ({**by_strategy, "inputs_embeds": model.get_input_embeddings().weight[None, :3]}, ValueError),
        "refused by a decoder": ({"custom_generate": own, "num_beams": 3}, ValueError),
        "refused by a processor": (
            {"logits_processor": [processor], "streamer": streamer, "guidance_scale": 3.0},
            ValueError,
        ),
    }


NAMES = ["strategy", "decoder", "streamer of a decoder", "processor", "refused option", "refused input"]
NAMES += ["refused by a decoder", "refused by a processor"]


@pytest.mark.parametrize("name", NAMES)
def test_a_streamer_is_ended_once(model, tokenizer, name):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    settings, error = calls_of(model, tokenizer, streamer)[name]
    raised = []

    def generate():
        try:
            model.generate(**encode(tokenizer, PROMPTS[:1]), max_new_tokens=40, **settings)
        except error as caught:
            raised.append(caught)

    thread = threading.Thread(target=generate)
    thread.start()
    texts = list(streamer)  # raises `queue.Empty` if the streamer is not ended
    thread.join()
    assert len(raised) == 1 and streamer.text_queue.empty()
    assert bool("".join(texts)) == (error is ScorerError)


def test_a_decoder_without_the_wrapper_ends_its_streamer(model, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    unregister_rain()
    try:
        for name in ("streamer of a decoder", "refused by a decoder"):
            settings, error = calls_of(model, tokenizer, streamer)[name]
            with pytest.raises(error):
                model.generate(**encode(tokenizer, PROMPTS[:1]), max_new_tokens=40, **settings)
            list(streamer)
            assert streamer.text_queue.empty()
    finally:
        register_rain()
