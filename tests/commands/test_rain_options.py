"""`interdistill rain` takes each setting of a search as an option of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import get_args, get_type_hints

import pytest
import yaml
from support.datasets import ROOT

from hf_interdistill.cli import main, parse
from hf_interdistill.commands import rain
from hf_interdistill.commands.rain_options import RainOptions, with_options
from hf_interdistill.rain.api.job_config import RainJobConfig
from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.strategies import OF_OTHER_STRATEGIES

NEEDED = ["--model", "m", "--prompts", "p.jsonl", "--output", "o.jsonl"]
OTHER_VALUES = {
    "edge_lengths": (1, 3),
    "turn_markers": ("Human:", "AI:"),
    "similarity_model": "encoder",
    "rollout_stops": ".!",
    "judge": "truthfulness",
    "judge_vote": "probability",
    "judge_orders": 1,
    "judge_calibration": True,
    "cuda_graphs": False,
    "rollout_max_tokens": 7,
    "num_speculative": 0,
    "seed": 5,
}


def job(*arguments: str):
    return with_options(*parse(rain.ARGUMENTS, [*NEEDED, *arguments]))


def other_value(field):
    return OTHER_VALUES.get(field.name) or (False if field.name == "cuda_graphs" else _next(field))


def _next(field):
    if field.name in OTHER_VALUES:
        return OTHER_VALUES[field.name]
    return field.default + 1 if isinstance(field.default, int) else field.default / 2 or 0.5


OF_STRATEGIES = {"strategy", *OF_OTHER_STRATEGIES}
SEARCH_FIELDS = [field for field in fields(RainConfig) if field.name not in OF_STRATEGIES]


@pytest.mark.parametrize("field", SEARCH_FIELDS, ids=lambda field: field.name)
def test_every_field_of_the_config_is_an_option(field, tmp_path):
    value = other_value(field)
    assert value != field.default
    words = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
    assert getattr(job(f"--{field.name}", *words).rain_config(), field.name) == value
    recipe = tmp_path / "rain.yaml"
    recipe.write_text(yaml.safe_dump({field.name: list(value) if isinstance(value, tuple) else value}))
    assert getattr(job("--config", str(recipe)).rain_config(), field.name) == value
    others = {each.name for each in fields(RainConfig)} - {field.name, "seed"}
    assert all(getattr(job(f"--{field.name}", *words).rain_config(), name) == _default(name) for name in others)


@pytest.mark.parametrize(
    ("strategy", "field", "value"),
    [("args", "reward_weight", 0.5), ("rad", "reward_weight", 3.0), ("beam", "beams", 3)],
)
def test_options_of_other_strategies(strategy, field, value, tmp_path, capsys):
    found = job("--strategy", strategy, f"--{field}", str(value)).rain_config()
    assert found == RainConfig.preset(strategy, **{field: value}, seed=found.seed)
    assert value != getattr(RainConfig.preset(strategy), field)
    recipe = tmp_path / "rain.yaml"
    recipe.write_text(yaml.safe_dump({"strategy": strategy, field: value}))
    assert job("--config", str(recipe)).rain_config() == found
    with pytest.raises(ValueError, match=f"`{field}` is {value}, but the strategy 'rain' does not read it"):
        job(f"--{field}", str(value)).rain_config()


@pytest.mark.parametrize("strategy", ["best_of_n", "beam", "args", "rad"])
@pytest.mark.parametrize("recipe", ["self", "reward"])
def test_the_strategy_of_a_recipe_is_overridden(recipe, strategy):
    """Its `preset: harmless` names an encoder that no other strategy reads."""
    path = str(ROOT / "recipes" / "smollm2-135m" / "rain" / f"{recipe}.yaml")
    config = with_options(*parse(rain.ARGUMENTS, ["--config", path, "--strategy", strategy])).rain_config()
    assert config == RainConfig.preset("harmless", strategy=strategy, seed=0)
    assert (config.judge, config.turn_markers, config.similarity_model) == ("harmlessness", ("Human:",), None)


def test_a_preset_beside_another_strategy():
    for preset in ("fast", "harmless"):
        found = job("--preset", preset, "--strategy", "beam").rain_config()
        assert found == RainConfig.preset(preset, strategy="beam", seed=0)
        with pytest.raises(ValueError, match=r"`exploration` is 3.0, but the strategy 'beam' does not read it"):
            job("--preset", preset, "--strategy", "beam", "--exploration", "3")


def test_a_job_is_checked_when_its_options_are_merged(tmp_path):
    recipe = tmp_path / "rain.yaml"

    def found(rain_settings: dict, *words: str) -> RainConfig:
        recipe.write_text(yaml.safe_dump({"rain": rain_settings}))
        return job("--config", str(recipe), *words).rain_config()

    beams = RainConfig.preset("beam", beams=3, seed=0)
    assert found({"beams": 3}, "--strategy", "beam") == beams
    assert found({"strategy": "beams", "beams": 3}, "--strategy", "beam") == beams
    assert found({"preset": "harmles"}, "--preset", "fast") == RainConfig.preset("fast", seed=0)
    assert found({"iterations": 0}, "--iterations", "7").iterations == 7
    for settings, message in (
        ({"beams": 3}, "`beams` is 3, but the strategy 'rain' does not read it"),
        ({"preset": "harmles"}, "`harmles` is not a preset"),
        ({"iterations": 0}, "`iterations` is 0, but must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            found(settings)
        with pytest.raises(ValueError, match=message):
            RainJobConfig(model="m", prompts="p", output="o", rain=settings)


OPTIONAL = [each.name for each in fields(RainConfig) if type(None) in get_args(get_type_hints(RainConfig)[each.name])]


@pytest.mark.parametrize("name", [each for each in OPTIONAL if each not in OF_STRATEGIES | {"seed"}])
def test_none_unsets_each_optional_field(name, tmp_path):
    value = OTHER_VALUES[name]
    nested = json.dumps({name: value})
    assert getattr(job("--rain", nested).rain_config(), name) == value
    recipe = tmp_path / "rain.yaml"
    for words in ([f"--{name}", "none"], [f"--{name}=none"], [f"--{name}", "None"], ["--config", str(recipe)]):
        for text in ("none", "null") if "--config" in words else ("",):
            recipe.write_text(f"{name}: {text}\n")
            config = job("--rain", nested, *words).rain_config()
            assert getattr(config, name) is None and config == RainConfig(seed=0)


def test_every_optional_field_was_tried():
    assert set(OPTIONAL) == {
        *("similarity_model", "rollout_max_tokens", "judge_orders", "num_speculative", "cuda_graphs"),
        *("reward_weight", "beams", "seed"),
    }


@pytest.mark.parametrize(
    ("strategy", "name"), [("args", "reward_weight"), ("rad", "reward_weight"), ("beam", "beams")]
)
def test_none_unsets_a_field_of_another_strategy(strategy, name):
    config = job("--strategy", strategy, f"--{name}", "none").rain_config()
    assert config == RainConfig.preset(strategy, **{name: None}, seed=0)
    assert getattr(RainConfig.preset(strategy), name) is not None


def test_none_unsets_what_a_preset_or_a_recipe_sets(tmp_path):
    config = job("--preset", "harmless", "--similarity_model", "none").rain_config()
    assert config == RainConfig.preset("harmless", similarity_model=None, seed=0)
    assert job("--preset", "fast", "--rollout_max_tokens", "none").rain_config().rollout_max_tokens is None
    assert job("--rain", '{"preset": "fast"}', "--preset", "none").rain_config() == RainConfig(seed=0)
    found = job("--generation", '{"max_new_tokens": 4}', "--max_new_tokens", "none")
    assert found.generation_settings() == {"max_new_tokens": None}
    recipe = tmp_path / "rain.yaml"
    recipe.write_text("seed: 4\nscorer: reward\nreward_model: r\nserver: [http://a:1, http://b:1]\ntrees: t\n")
    words = ["--scorer", "self", "--reward_model", "none", "--server", "none", "--trees", "none", "--seed", "none"]
    found = job("--config", str(recipe), *words)
    assert (found.seed, found.reward_model, found.server, found.trees) == (None, None, None, None)
    assert found.rain_config().seed == 0


@pytest.mark.parametrize("name", ["iterations", "candidates", "exploration", "judge_calibration", "edge_lengths"])
def test_a_field_that_cannot_be_none_says_so(name):
    with pytest.raises(ValueError, match=rf"--{name}.* 'none'|--judge_calibration.* got none"):
        job(f"--{name}", "none").rain_config()


def test_words_that_are_none_stay_words_where_there_is_no_none():
    assert job("--rollout_stops", "none").rain_config().rollout_stops == "none"
    assert job("--turn_markers", "none").rain_config().turn_markers == ("none",)


def test_a_bare_switch_means_true():
    assert job("--cuda_graphs").rain_config().cuda_graphs is True
    assert job("--judge_calibration").rain_config().judge_calibration is True


def test_the_help_names_none_where_it_may_be_given(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit):
        main(["rain", "--help"])
    shown = capsys.readouterr().out
    assert "`none` as the value of an option without a default unsets it" in shown
    for name in OPTIONAL:
        (line,) = (line for line in shown.splitlines() if line.strip().startswith(f"--{name} "))
        assert name == "seed" or "; or `none`, the default." in line


def _default(name: str):
    return getattr(RainConfig(), name)


def test_help_says_what_each_option_does(capsys):
    with pytest.raises(SystemExit):
        main(["rain", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "visit budget of a root, including visits from before it became the root; 50 if not given." in shown
    presets = "harmless, adversarial, truthful, fast, best_of_n, beam, args, rad"
    assert f"Settings to start from (the first three are published): {presets}." in shown
    texts = {each.name: each.metadata["help"] for each in fields(RainOptions)}
    assert all(not text.startswith(name) and len(text) > 20 for name, text in texts.items()), texts


def test_a_preset_and_changes_to_it():
    expected = RainConfig.preset("harmless", iterations=9, seed=0)
    assert job("--preset", "harmless", "--iterations", "9").rain_config() == expected
    assert job("--rain", '{"preset": "harmless"}', "--iterations", "9").rain_config() == expected
    assert job("--rain", '{"iterations": 9}', "--preset", "harmless").rain_config() == expected


def test_options_come_before_the_nested_form():
    found = job(
        *("--rain", '{"iterations": 3, "candidates": 4, "seed": 1}', "--iterations", "8", "--seed", "0"),
        *("--generation", '{"max_new_tokens": 9, "temperature": 0.5}', "--max_new_tokens", "5"),
    )
    config = found.rain_config()
    assert (config.iterations, config.candidates, config.seed) == (8, 4, 0)
    assert found.generation_settings() == {"max_new_tokens": 5, "temperature": 0.5}
    assert job("--rain", '{"seed": 1}').rain_config().seed == 1 and job().rain_config().seed == 0


def test_no_option_leaves_the_job_as_it_is():
    parsed, options = parse(rain.ARGUMENTS, NEEDED)
    assert options == RainOptions() and asdict(with_options(parsed, options)) == asdict(parsed)


def test_settings_of_earlier_jobs_still_fit():
    """Outputs record their settings, and are resumed only with the same ones."""
    assert job().result_settings()["seed"] == 0
    assert job("--iterations", "9").result_settings() == job("--rain", '{"iterations": 9}').result_settings()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_iterations", "3"], "Unknown key `num_iterations` given. Did you mean `iterations`?"),
        (["--max_tokens", "3"], "Did you mean `max_new_tokens`?"),
        (["--presets", "harmless"], "Did you mean `preset`?"),
        (
            ["--preset", "harmles"],
            "`harmles` is not a preset of RainConfig. Choose one of harmless, adversarial, truthful, fast, best_of_n",
        ),
        (["--iterations", "0"], "`iterations` is 0, but must be a whole number, at least 1."),
        (["--iterations", "many"], "Argument --iterations: invalid int value: 'many'. (`--help` lists all keys.)"),
    ],
)
def test_mistakes_are_explained(arguments, message, capsys):
    assert main(["rain", *NEEDED, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "usage" not in error


def test_missing_keys_are_named_without_a_list_of_all(capsys):
    assert main(["rain", "--model", "m"]) == 2
    error = capsys.readouterr().err
    assert "The following arguments are required: --prompts, --output. (`--help`" in error and len(error) < 200
    assert main(["rain", "--config"]) == 2 and "`--config` names no file" in capsys.readouterr().err


def test_a_config_file_with_an_equals_sign(tmp_path, capsys):
    recipe = tmp_path / "rain.yaml"
    recipe.write_text("iterations: 7\n")
    assert job(f"--config={recipe}").rain_config().iterations == 7
    recipe.write_text("iteratoins: 7\n")
    assert main(["rain", *NEEDED, f"--config={recipe}"]) == 2
    assert f"Unknown key `iteratoins` in {recipe}. Did you mean `iterations`?" in capsys.readouterr().err


def test_a_search_with_options(pipeline_with_prompts, capsys):
    pipeline = pipeline_with_prompts
    output = pipeline.path("flat.jsonl")
    arguments = ["--model", str(pipeline.path("lm")), "--prompts", str(pipeline.path("prompts.jsonl"))]
    arguments += ["--scorer", "support.job_scorers:short", "--iterations", "4", "--candidates", "3"]
    arguments += ["--min_visits", "2", "--rollout_max_tokens", "4", "--max_batch_size", "2", "--seed", "3"]
    generation = json.dumps({"pad_token_id": 3})
    arguments += ["--max_new_tokens", "4", "--generation", generation, "--output", str(output)]
    assert main(["rain", *arguments]) == 0
    assert main(pipeline.rain()) == 0
    assert pipeline.answers("flat.jsonl") == pipeline.answers()
