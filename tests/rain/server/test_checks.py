"""Before the first search: servers, models, vocabularies and options that cannot be used, each by name."""

from __future__ import annotations

import pytest
from support.rain import likes_short_words, quick_config, tree_shape
from support.tokenizers import tokenizer_of
from support.vllm_server import RefusalError, VllmLike, served

from hf_interdistill import RainClient
from hf_interdistill.utils.fields import UnknownFieldError
from hf_interdistill.utils.servers import ServerError


def start(url, tokenizer, config=None, model="lm", **generation):
    client = RainClient(url, model, tokenizer, config or quick_config(), likes_short_words, backoff=0.001, retries=2)
    return client.generate(["Tell me"], **{"max_new_tokens": 2, **generation})


def without(name):
    """A server that does not know a parameter, and passes it over."""

    def fault(path, body):
        body.pop(name, None)
        if name == "top_k":
            body["top_k"] = 0

    return fault


def answering(path_wanted, status, content):
    return lambda path, body: (status, content) if path == path_wanted else None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (without("allowed_token_ids"), "does not apply `allowed_token_ids`.*vllm serve"),
        (without("top_k"), "does not apply `top_k`.*plain OpenAI"),
        (without("stop_token_ids"), "does not apply `stop_token_ids`"),
        (
            answering("/tokenize", 404, {"detail": "Not Found"}),
            "does not answer `/tokenize`.*plain OpenAI.*vllm serve",
        ),
        (answering("/v1/completions", 200, {"choices": [{"text": "a"}]}), "without token ids or log probabilities"),
        (answering("/v1/models", 200, {"data": [{"id": "a"}, {"id": "b"}]}), "no model 'lm'; it serves 'a', 'b'"),
        (answering("/v1/models", 404, "gone"), "lists no models .404: gone."),
        (answering("/v1/models", 200, ["a"]), "lists no models"),
        (answering("/v1/models", 200, "<html>"), "not JSON.*html"),
        (answering("/tokenize", 200, {"tokens": "a"}), "answers no token ids"),
    ],
)
def test_a_server_that_cannot_do_it_is_refused_at_the_start(url, backend, tokenizer, fault, message):
    backend.fault = fault
    with pytest.raises((ValueError, ServerError), match=message):
        start(url, tokenizer)


@pytest.mark.parametrize("has_limit", [True, False])
def test_too_few_log_probabilities_name_the_flag(model, tokenizer, has_limit):
    backend = VllmLike(model, tokenizer, max_logprobs=15)
    if not has_limit:  # a server that sends fewer and says nothing
        backend = VllmLike(
            model, tokenizer, fault=lambda path, body: body.update(logprobs=15) if "n" in body else None
        )
    with served(backend) as url:
        with pytest.raises(ValueError, match=r"log probabilities of 18 tokens.*`--max-logprobs 18`"):
            start(url, tokenizer, quick_config(sample_top_k=18))
        start(url, tokenizer, quick_config(sample_top_k=15))


def test_another_vocabulary_is_refused(url):
    with pytest.raises(ValueError, match=r"The tokenizer is not that of 'lm'.*token 0 is"):
        start(url, tokenizer_of("metaspace"))
    longer = tokenizer_of("bytes")
    longer.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match="The tokenizer is not that of 'lm'"):
        start(url, longer)


def test_another_name_is_refused(url, tokenizer):
    with pytest.raises(ValueError, match="no model 'other'; it serves 'lm'"):
        start(url, tokenizer, model="other")


def test_a_server_that_is_down_is_reported(tokenizer):
    with served(VllmLike(None, tokenizer)) as url:
        pass
    with pytest.raises(ServerError, match=r"could not be reached.*tried 2 times.*vllm serve MODEL"):
        start(url, tokenizer)


@pytest.mark.parametrize("url", ["localhost:8000", "", None, "ftp://a"])
def test_an_address_must_be_one(tokenizer, url):
    with pytest.raises(ValueError, match="must be an address such as `http://localhost:8000`"):
        RainClient(url, "lm", tokenizer)


@pytest.mark.parametrize("ending", ["/", "/v1", "/v1/"])
def test_the_address_may_be_that_of_openai_clients(url, tokenizer, ending):
    assert len(start(url + ending, tokenizer)) == 1


@pytest.mark.parametrize(
    "settings", [{"timeout": 0}, {"timeout": "1"}, {"retries": -1}, {"backoff": -0.5}, {"retries": True}]
)
def test_limits_must_be_numbers(tokenizer, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is .*must be"):
        RainClient("http://localhost:1", "lm", tokenizer, **settings)


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"min_p": 0.1, "do_sample": True}, "`min_p` is 0.1, but a server is sent only"),
        ({"num_beams": 4}, "`num_beams` is 4"),
        ({"bad_words_ids": [[4]]}, "`bad_words_ids` is"),
        ({"no_repeat_ngram_size": 2}, "`no_repeat_ngram_size` is 2"),
        ({"num_return_sequences": 2}, "`num_return_sequences` is 2"),
        ({"min_new_tokens": 2}, "`min_new_tokens` is 2"),
        ({"output_scores": True}, "`output_scores` is True"),
        ({"assistant_model": "a"}, "no field `assistant_model`"),
        ({"repetition_penalty": 1.2}, "--logprobs-mode processed_logprobs"),
        ({"do_sample": True, "top_p": 0.9, "temperature": 0.5, "top_k": 0}, "Pass `top_k`, or `top_p=1.0`"),
        ({"do_sample": True, "top_p": 0.9, "top_k": 40}, "`top_p` is 0.9 among the `top_k` .40.*--max-logprobs 40"),
        ({"do_sample": True, "temperature": -1.0}, "`temperature` .* must be positive"),
        ({"max_new_tokens": 0}, "allows 0 new tokens"),
    ],
)
def test_options_that_cannot_be_sent_are_refused_by_name(url, tokenizer, generation, message):
    with pytest.raises((ValueError, UnknownFieldError), match=message):
        start(url, tokenizer, **generation)


def test_options_that_change_nothing_are_taken(url, tokenizer):
    plain = start(url, tokenizer)
    neutral = {"pad_token_id": 3, "use_cache": True, "min_p": 0.1, "num_beams": 1, "top_p": 0.5, "temperature": 0.3}
    assert start(url, tokenizer, **neutral)[0].tokens == plain[0].tokens


@pytest.mark.parametrize("settings", [{"num_speculative": 3}, {"cuda_graphs": True}])
def test_settings_of_passes_are_refused(tokenizer, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is"):
        RainClient("http://localhost:1", "lm", tokenizer, quick_config(**settings))


def test_a_prompt_must_fit(model, tokenizer):
    with served(VllmLike(model, tokenizer, max_length=30)) as url:
        client = RainClient(url, "lm", tokenizer, quick_config(), likes_short_words)
        (record,) = client.generate(["How do I bake bread?"])
        assert record.finish_reason == "context"
        with pytest.raises(ValueError, match="`--max-model-len` is 30"):
            client.generate(["How do I bake bread? " * 9])
        with pytest.raises(ValueError, match="no tokens"):
            client.generate([""])


def test_a_judge_text_that_is_too_long_is_the_scorers_error(model, tokenizer):
    from hf_interdistill.rain.scorers.base import ScorerError

    with served(VllmLike(model, tokenizer, max_length=120)) as url:
        client = RainClient(url, "lm", tokenizer, quick_config(judge="harmlessness_short"))
        with pytest.raises(ScorerError, match="`--max-model-len` is 120"):
            client.generate(["Tell me"], max_new_tokens=2)


def test_a_key_is_sent_and_a_wrong_one_is_reported(url, backend, tokenizer, monkeypatch):
    start(url, tokenizer)
    assert set(backend.keys) == {None}
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    start(url, tokenizer)
    assert backend.keys[-1] == "Bearer secret"
    RainClient(url, "lm", tokenizer, quick_config(), likes_short_words, api_key="other").generate(["a"], max_length=4)
    assert backend.keys[-1] == "Bearer other"
    backend.fault = lambda path, body: (401, {"error": "Unauthorized"})
    with pytest.raises(ServerError, match=r"401.*Unauthorized"):
        start(url, tokenizer)


def test_what_the_server_refuses_of_one_prompt_is_reported(url, backend, tokenizer):
    def fault(path, body):
        if path == "/v1/completions" and body["max_tokens"] == 2 and body.get("n") == 1 and "seed" in body:
            raise RefusalError("Out of luck")

    backend.fault = fault
    with pytest.raises(ServerError, match=r"refused a request \(400\): Out of luck"):
        start(url, tokenizer, quick_config(edge_lengths=(1,), rollout_max_tokens=2), max_new_tokens=4)


def test_a_server_that_takes_few_stop_tokens_gives_the_same_texts(model, tokenizer, caplog):
    config = quick_config(edge_lengths=(1,), expansion_temperature=1e6)
    nothing_drawn = {"do_sample": True, "temperature": 1e-6, "top_k": 0, "max_new_tokens": 40}
    found = []
    for most in (None, 30):
        with served(VllmLike(model, tokenizer, max_stop_tokens=most)) as url:
            backend_config = config.replace(rollout_stops="abcdefghijklmnopqrstuvwxyz")
            found.append(start(url, tokenizer, backend_config, **nothing_drawn)[0])
    assert found[0].tokens == found[1].tokens and tree_shape(found[0].tree) == tree_shape(found[1].tree)
    (warning,) = [each.getMessage() for each in caplog.records if "stop_token_ids" in each.getMessage()]
    assert "VLLM_MAX_STOP_TOKEN_IDS=" in warning


def test_rollouts_are_cut_here_in_short_requests_where_the_server_stops_at_no_tokens(model, tokenizer):
    backend = VllmLike(model, tokenizer, max_stop_tokens=30)
    config = quick_config(rollout_max_tokens=None, rollout_stops="abcdefghijklmnopqrstuvwxyz")
    with served(backend) as url:
        start(url, tokenizer, config, max_new_tokens=100)
    rollouts = [body for path, body in backend.requests if path == "/v1/completions" and body.get("stop") is not None]
    assert rollouts and max(body["max_tokens"] for body in rollouts) == 16
    assert all(len(body["stop_token_ids"]) <= 30 for body in rollouts)
