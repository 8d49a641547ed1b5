"""The strategies beside RAIN through every entry point, with every kind of scorer, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from support.judges import SHORT
from support.rain import PROMPTS, build_causal, encode, likes_short_words
from support.tokenizers import tokenizer_of
from support.vllm_server import VllmLike, served

from hf_interdistill import RainClient, RainConfig, RainDecoder, RAINLogitsProcessor
from hf_interdistill.cli import main
from hf_interdistill.rain.api.export import export_custom_generate, strategy_section
from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.rain.presets import PRESETS
from hf_interdistill.rain.scorers.builtin import FunctionScorer, RewardModelScorer
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer
from hf_interdistill.rain.scorers.weighted import WeightedScorer
from hf_interdistill.rain.strategies import STRATEGIES, is_read

OTHERS = ["args", "rad", "beam", "best_of_n"]


@pytest.mark.parametrize("strategy", OTHERS)
def test_all_entry_points_give_the_same_tokens(strategy, model, tokenizer, tmp_path):
    inputs, config = encode(tokenizer, PROMPTS), RainConfig.preset(strategy, seed=5, candidates=3)
    settings = {"max_new_tokens": 6, "eos_token_id": 2, "pad_token_id": 3}
    scorer = {"rain_scorer": likes_short_words, "tokenizer": tokenizer}
    decoder = RainDecoder(tokenizer, config, likes_short_words)
    expected = model.generate(**inputs, custom_generate=decoder, **settings)
    given = [config, config.to_dict(), {"seed": 5, "candidates": 3}, {"preset": strategy, "seed": 5, "candidates": 3}]
    for each in given:
        found = model.generate(**inputs, strategy=strategy, rain_config=each, **scorer, **settings)
        assert torch.equal(found, expected)
    assert torch.equal(model.generate(**inputs, custom_generate=decoder, strategy=strategy, **settings), expected)
    processor = RAINLogitsProcessor(model, tokenizer, config, likes_short_words)
    assert torch.equal(model.generate(**inputs, logits_processor=[processor], **settings), expected)
    folder = str(export_custom_generate(tmp_path, config).parent.parent)
    own = {"custom_generate": folder, "trust_remote_code": True}
    assert torch.equal(model.generate(**inputs, **own, **scorer, **settings), expected)


@pytest.mark.parametrize("strategy", OTHERS)
def test_without_a_config_the_preset_of_the_name_is_used(strategy, model, tokenizer):
    inputs = encode(tokenizer, PROMPTS[:1])
    own = {"tokenizer": tokenizer, "rain_scorer": likes_short_words, "max_new_tokens": 4}
    results = []
    for config in (None, strategy, PRESETS[strategy]):
        torch.manual_seed(0)
        results.append(model.generate(**inputs, strategy=strategy, rain_config=config, **own))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("preset", ["harmless", "fast"])
@pytest.mark.parametrize("strategy", OTHERS)
def test_a_preset_of_the_search_fits_every_strategy(strategy, preset, model, tokenizer, tmp_path):
    inputs, config = encode(tokenizer, PROMPTS[:1]), RainConfig.preset(preset, strategy=strategy, seed=4)
    own = {"tokenizer": tokenizer, "rain_scorer": likes_short_words, "max_new_tokens": 4}
    expected = model.generate(**inputs, strategy=strategy, rain_config=config, **own)
    for given in ({"preset": preset, "seed": 4}, {"preset": preset, "strategy": strategy, "seed": 4}):
        assert torch.equal(model.generate(**inputs, strategy=strategy, rain_config=given, **own), expected)
    assert RainClient("http://localhost:1", "m", tokenizer, given, likes_short_words).config == config
    assert RainDecoder(tokenizer, given, likes_short_words).config == config
    assert RainJobConfig(model="m", prompts="p", output="o", rain=given).rain_config() == config
    assert main(["rain", "push", f"--output={tmp_path}", f"--rain={json.dumps(given)}"]) == 0
    assert f"'strategy': '{strategy}'" in (tmp_path / "custom_generate" / "generate.py").read_text()
    torch.manual_seed(1)
    named = model.generate(**inputs, strategy=strategy, rain_config=preset, **own)
    torch.manual_seed(1)
    assert torch.equal(named, model.generate(**inputs, strategy=strategy, rain_config={"preset": preset}, **own))


@pytest.mark.parametrize("strategy", OTHERS)
def test_every_scorer_steers(strategy, model, tokenizer):
    def reward(prompts, completions):
        return [
            len(completion) / 10 + len(str(prompt)) / 1000
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    scorers = {
        "function": likes_short_words,
        "with prompt": FunctionScorer(likes_short_words, with_prompt=True),
        "reward": RewardModelScorer(reward, scale=3.0),
        "mix": WeightedScorer([(likes_short_words, 1.0), (reward, 2.0)]),
        "self": SelfEvaluationScorer(SHORT, vote="probability"),
    }
    costs = {}
    for name, scorer in scorers.items():
        config = RainConfig.preset(strategy, candidates=3, seed=1)
        output = model.generate(
            **encode(tokenizer, PROMPTS[:1]),
            strategy=strategy,
            tokenizer=tokenizer,
            rain_config=config,
            rain_scorer=scorer,
            max_new_tokens=3,
            return_dict_in_generate=True,
        )
        stats = output.rain[0].stats
        assert stats["committed_tokens"] == 3 and stats["judge_calls"] >= 2, name
        costs[name] = stats["forward_tokens"]
    assert costs["self"] > 1.5 * costs["function"]


@pytest.mark.parametrize(
    ("strategy", "config", "message"),
    [
        ("args", RainConfig(), "`strategy` is 'args', but the config's is 'rain'. Give a config of 'args'"),
        ("args", RainConfig.preset("harmless"), "`strategy` is 'args', but the config's is 'rain'"),
        ("rain", "beam", "`strategy` is 'rain', but the preset 'beam' is that of the strategy 'beam'"),
        (
            "args",
            {"preset": "fast", "exploration": 1.0},
            "`exploration` is 1.0, but the strategy 'args'",
        ),
        ("beam", {"strategy": "rad"}, "`strategy` is 'beam', but the config's is 'rad'"),
        ("args", {"beams": 2}, r"`beams` is 2, but the strategy 'args' does not read it \(beam does\)"),
        ("beam", {"reward_weight": 1.0}, r"`reward_weight` is 1.0, but .* 'beam' does not read it \(args, rad do\)"),
        ("best_of_n", {"edge_lengths": [3]}, r"`edge_lengths` is \(3,\), but .*'best_of_n'.*\(rain, beam do\)"),
        ("rad", {"similarity_model": "x"}, r"`similarity_model` is 'x', but .*\(rain does\)\. Leave it out"),
        ("rad", {"num_speculative": 4}, "`num_speculative` is 4, but the strategy 'rad' does not read it"),
        ("rain", {"reward_weight": 1.0}, "`reward_weight` is 1.0, but the strategy 'rain' does not read it"),
        ("args", {"reward_weight": -1}, "`reward_weight` is -1, but must be None, 0 or a positive number"),
        ("rad", {"reward_weight": float("nan")}, "`reward_weight` is nan"),
        ("beam", {"beams": 0}, "`beams` is 0, but must be None or a whole number, at least 1"),
    ],
)
def test_settings_of_another_strategy_are_refused(strategy, config, message, model, tokenizer):
    own = {"tokenizer": tokenizer, "rain_scorer": likes_short_words, "max_new_tokens": 2}
    with pytest.raises(ValueError, match=message):
        model.generate(**encode(tokenizer, PROMPTS[:1]), strategy=strategy, rain_config=config, **own)


@pytest.mark.parametrize("value", ["ars", 3, None, ["args"]])
def test_a_strategy_that_is_none_is_named(value):
    with pytest.raises(ValueError, match=r"`strategy` is .*, but must be one of rain, best_of_n, beam, args, rad\."):
        RainConfig.from_dict({"strategy": value})


def test_a_decoder_of_another_strategy_is_refused(model, tokenizer):
    decoder = RainDecoder(tokenizer, "args", likes_short_words)
    with pytest.raises(ValueError, match="`strategy` is 'rad', but the config's is 'args'"):
        model.generate(**encode(tokenizer, PROMPTS[:1]), strategy="rad", custom_generate=decoder, max_new_tokens=2)


def test_an_encoder_of_texts_is_refused(tokenizer):
    for make in (
        lambda: RainDecoder(tokenizer, "args", embedder=len),
        lambda: RainClient("http://localhost:1", "m", tokenizer, "beam", embedder=len),
    ):
        with pytest.raises(ValueError, match=r"`embedder` is .*, but the strategy '(args|beam)' embeds no texts"):
            make()


def test_every_setting_is_read_by_some_strategy():
    for name in RainConfig().to_dict():
        assert any(is_read(strategy, name) for strategy in STRATEGIES), name
    for strategy in OTHERS:
        assert set(PRESETS[strategy]) <= STRATEGIES[strategy].reads <= set(RainConfig().to_dict())


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def files(tmp_path):
    build_causal().save_pretrained(tmp_path / "model")
    tokenizer_of("bytes").save_pretrained(tmp_path / "model")
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text(rows)
    return tmp_path


@pytest.mark.parametrize("strategy", OTHERS)
def test_jobs_and_the_command_line(strategy, files, model, tokenizer, capsys):
    paths = {"model": str(files / "model"), "prompts": str(files / "prompts.jsonl")}
    common = {**paths, "scorer": "support.job_scorers:short", "generation": {"max_new_tokens": 5, "pad_token_id": 3}}
    result = run_rain_job(
        RainJobConfig(**common, output=str(files / "a.jsonl"), rain={"strategy": strategy, "candidates": 3})
    )
    answers = rows_of(files / "a.jsonl")
    expected = model.generate(
        **encode(tokenizer, PROMPTS),
        strategy=strategy,
        tokenizer=tokenizer,
        rain_config={"candidates": 3, "seed": 0},
        rain_scorer=likes_short_words,
        max_new_tokens=5,
        return_dict_in_generate=True,
    )
    assert [row["tokens"] for row in answers] == [record.tokens for record in expected.rain]
    assert result["forward_tokens"] == sum(record.stats["forward_tokens"] for record in expected.rain)
    arguments = [f"--{name}={value}" for name, value in paths.items()]
    arguments += ["--scorer=support.job_scorers:short", f"--strategy={strategy}", "--candidates=3"]
    trees = [f"--trees={files / 'trees'}", "--tree_format=html"]
    assert main(["rain", *arguments, *trees, f"--output={files / 'b.jsonl'}", "--max_new_tokens=5"]) == 0
    shown, name = capsys.readouterr(), STRATEGIES[strategy].heading
    assert name in shown.out and f"{name}: 100%" in shown.err and "RAIN" not in shown.out + shown.err
    pages = [path.read_text(encoding="utf-8") for path in (files / "trees").iterdir()]
    assert len(pages) == len(PROMPTS) and all(
        f"<h1>Search tree of {STRATEGIES[strategy].title}</h1>" in page for page in pages
    )
    lines = rows_of(files / "b.jsonl")
    assert [row["tokens"] for row in lines] == [row["tokens"] for row in answers]


def test_a_served_model_is_searched_with_every_strategy(model, tokenizer):
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 1e-6, "top_k": 0}
    with served(VllmLike(model, tokenizer)) as url:
        for strategy in OTHERS:
            greedy = {} if strategy in ("args", "rad") else {"sample_top_k": 1}
            # Scores of the likeliest tokens as likely as ever; nothing is drawn where there is one to draw from.
            warm = {"expansion_temperature": 1e6, "candidates": 1 if strategy == "rad" else 3}
            config = RainConfig.preset(strategy, seed=2, **warm, **greedy)
            records = RainClient(url, "lm", tokenizer, config, likes_short_words).generate(PROMPTS, **options)
            ours = model.generate(
                **encode(tokenizer, PROMPTS),
                strategy=strategy,
                tokenizer=tokenizer,
                rain_config=config,
                rain_scorer=likes_short_words,
                return_dict_in_generate=True,
                **options,
            )
            assert [each.tokens for each in records] == [each.tokens for each in ours.rain]
            assert all(each.stats["judge_calls"] > 0 for each in records)


def test_the_card_describes_the_strategy():
    rain, beam = strategy_section("me/it"), strategy_section("me/it", "beam")
    assert "RAIN decoding" in rain and "2309.07124" in rain
    assert "chunk-wise beam search" in beam and "2405.19262" in beam and "`beams` | `2`" in beam
    assert "2309.07124" not in beam and "rewinds" not in beam and "`exploration`" not in beam
