"""All constants of the published settings, and the values that a config refuses."""

import copy
import pickle

import pytest

from hf_interdistill.rain.config import PRESETS, RainConfig
from hf_interdistill.rain.deviations import DEVIATIONS
from hf_interdistill.rain.strategies import STRATEGIES
from hf_interdistill.utils.fields import UnknownFieldError

# The constants of the paper and the released code.
PUBLISHED = {
    "edge_lengths": (1, 2, 4, 10),
    "candidates": 10,
    "sample_top_k": 15,
    "expansion_temperature": 1.0,
    "max_children": 20,
    "exploration": 2.0,
    "root_uniform": 0.25,
    "min_visits": 6,
    "value_threshold": 0.8,
    "iterations": 50,
    "extra_iterations": 15,
    "similarity_threshold": 0.95,
    "similarity_weight": 0.2,
    "widening_variance": 0.03,
    "widening_value": 0.0,
    "rollout_stops": ",.?:;\n",
    "rollout_max_tokens": None,
    "judge_vote": "hard",
    "judge_orders": None,
    "judge_calibration": False,
    "leaves_per_step": 1,
    "virtual_loss": 1.0,
    "similarity_model": "sentence-transformers/all-MiniLM-L6-v2",
}
BY_PRESET = {
    "harmless": {"min_visits": 6, "judge": "harmlessness", "turn_markers": ("Human:",)},
    "adversarial": {
        "min_visits": 5,
        "expansion_temperature": 2.0,
        "judge": "harmlessness",
        "turn_markers": ("USER:",),
    },
    "truthful": {"min_visits": 16, "rollout_stops": "", "judge": "truthfulness", "turn_markers": ()},
}
# Settings of this implementation, not of the method.
OURS = {"num_speculative": None, "cuda_graphs": None, "max_batch_size": 16, "seed": None, "strategy": "rain"}
OURS |= {"reward_weight": None, "beams": None}  # of other strategies


@pytest.mark.parametrize("name", BY_PRESET)
def test_preset_holds_the_published_constants(name):
    expected = {**PUBLISHED, **OURS, **BY_PRESET[name]}
    assert RainConfig.preset(name).to_dict() == expected
    assert set(PRESETS) == {*BY_PRESET, "fast", "best_of_n", "beam", "args", "rad"}


def test_the_fast_preset_differs_from_the_published_one_in_what_costs_time():
    fast, harmless = RainConfig.preset("fast").to_dict(), RainConfig.preset("harmless").to_dict()
    assert {name: value for name, value in fast.items() if value != harmless[name]} == {
        "edge_lengths": (12,),
        "candidates": 8,
        "exploration": 8.0,
        "root_uniform": 1.0,
        "min_visits": 3,
        "iterations": 12,
        "extra_iterations": 6,
        "leaves_per_step": 6,
        "rollout_stops": "",
        "rollout_max_tokens": 12,
        "similarity_model": None,
        "judge": "harmlessness_short",
        "judge_calibration": True,
    }


def test_lengths_of_edges_by_depth():
    assert [RainConfig().edge_length(depth) for depth in range(6)] == [1, 2, 4, 10, 10, 10]


@pytest.mark.parametrize(
    "make",
    [
        lambda: RainConfig(min_visit=3),
        lambda: RainConfig.preset("harmless", min_visit=3),
        lambda: RainConfig.from_dict({"min_visit": 3}),
        lambda: RainConfig().replace(min_visit=3),
    ],
)
def test_a_misspelt_field_names_the_nearest(make):
    with pytest.raises(UnknownFieldError, match=r"`min_visit`; the nearest is `min_visits`"):
        make()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("edge_lengths", ()),
        ("edge_lengths", (1, 0)),
        ("candidates", 0),
        ("candidates", True),
        ("sample_top_k", 1.5),
        ("expansion_temperature", 0.0),
        ("expansion_temperature", float("nan")),
        ("exploration", -1),
        ("root_uniform", 1.1),
        ("value_threshold", 2),
        ("rollout_max_tokens", 0),
        ("turn_markers", "Human:"),
        ("judge_vote", "soft"),
        ("judge_orders", 3),
        ("judge_orders", 1.5),
        ("judge_calibration", "yes"),
        ("leaves_per_step", 0),
        ("leaves_per_step", 2.0),
        ("virtual_loss", 0),
        ("virtual_loss", float("inf")),
        ("cuda_graphs", "yes"),
        ("cuda_graphs", 1),
        ("max_batch_size", 0),
        ("seed", -1),
        ("edge_lengths", 3),  # numbers and words in the place of others, as YAML may hold them
        ("turn_markers", 3),
        ("exploration", "high"),
        ("expansion_temperature", "1"),
        ("root_uniform", None),
        ("value_threshold", True),
        ("rollout_stops", None),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        RainConfig(**{field: value})


def test_unknown_preset_names_the_others():
    with pytest.raises(ValueError, match="harmless, adversarial, truthful, fast"):
        RainConfig.preset("harmles")


def test_a_config_is_plain_data():
    config = RainConfig.preset("adversarial", seed=4)
    assert RainConfig.from_dict(config.to_dict()) == config
    assert RainConfig.from_dict({"preset": "adversarial", "seed": 4}) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config.replace() == config
    assert hash(config) == hash(RainConfig.preset("adversarial", seed=4))


def test_resolve_takes_what_users_pass():
    assert RainConfig.resolve(None) == RainConfig()
    assert RainConfig.resolve("truthful") == RainConfig.preset("truthful")
    assert RainConfig.resolve({"preset": "truthful"}) == RainConfig.preset("truthful")
    with pytest.raises(TypeError, match="is a int"):
        RainConfig.resolve(3)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "rain"])
@pytest.mark.parametrize("preset", ["harmless", "adversarial", "truthful", "fast"])
def test_a_preset_gives_another_strategy_what_it_reads(preset, strategy):
    """The rest is that of the preset of the strategy's name."""
    found = RainConfig.preset(preset, strategy=strategy)
    shared = {name: value for name, value in PRESETS[preset].items() if name in STRATEGIES[strategy].reads}
    assert found == RainConfig(**{**PRESETS[strategy], **shared})
    assert found.judge == PRESETS[preset]["judge"] and found.similarity_model is None
    assert RainConfig.from_dict({"preset": preset, "strategy": strategy}) == found
    assert RainConfig.resolve({"preset": preset}, strategy) == RainConfig.resolve(preset, strategy) == found
    assert RainConfig.resolve({"preset": preset, "seed": 3}, strategy) == found.replace(seed=3)
    assert RainConfig.preset(preset, strategy="rain") == RainConfig.preset(preset)


def test_a_preset_and_a_strategy_by_hand():
    assert RainConfig.preset("harmless", strategy="beam") == RainConfig(
        strategy="beam",
        beams=2,
        candidates=4,
        edge_lengths=(8,),
        turn_markers=("Human:",),
    )
    fast = RainConfig.preset("fast", strategy="best_of_n")
    assert (fast.candidates, fast.edge_lengths, fast.judge_calibration) == (8, (1, 2, 4, 10), True)


@pytest.mark.parametrize("preset", ["harmless", "fast"])
def test_what_the_user_sets_himself_is_refused_still(preset):
    changes = {"similarity_model": "encoder", "exploration": 3.0, "iterations": 9, "leaves_per_step": 2}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"`{name}` is {value!r}, but the strategy 'beam' does not read it"):
            RainConfig.preset(preset, strategy="beam", **{name: value})
        with pytest.raises(ValueError, match=f"`{name}` is {value!r}"):
            RainConfig.resolve({"preset": preset, name: value}, "beam")


@pytest.mark.parametrize("make", [RainConfig.preset, lambda name, strategy: RainConfig.resolve(name, strategy)])
def test_the_preset_of_a_strategy_is_of_no_other(make):
    for name, strategy in (("beam", "rain"), ("args", "rad"), ("best_of_n", "beam")):
        message = f"`strategy` is '{strategy}', but the preset '{name}' is that of the strategy '{name}'. Leave one"
        with pytest.raises(ValueError, match=message):
            make(name, strategy=strategy)
    assert RainConfig.preset("beam", strategy="beam") == RainConfig.preset("beam")


def test_another_strategy_in_a_copy_names_what_it_does_not_read_and_the_value_that_it_may_have():
    config = RainConfig.preset("harmless")
    with pytest.raises(ValueError, match=r"`similarity_model` is .*Leave it out \(it is None then\), or change"):
        config.replace(strategy="beam")
    assert config.replace(strategy="beam", similarity_model=None).strategy == "beam"


def test_deviations_say_what_and_why():
    assert all(len(reason) > 40 for reason in DEVIATIONS.values())


def test_old_names_of_fields_are_taken_with_a_warning():
    for old, new in (("read_ahead", "num_speculative"), ("prompts_in_flight", "max_batch_size")):
        made = [
            lambda old=old: RainConfig(**{old: 5}),
            lambda old=old: RainConfig.from_dict({"preset": "harmless", old: 5}),
            lambda old=old: RainConfig.preset("truthful", **{old: 5}),
            lambda old=old: RainConfig().replace(**{old: 5}),
        ]
        for make in made:
            with pytest.warns(FutureWarning, match=f"`{old}` of RainConfig is now `{new}`"):
                config = make()
            assert getattr(config, new) == 5
            with pytest.warns(FutureWarning, match=f"`{old}` of RainConfig is now `{new}`"):
                assert getattr(config, old) == 5
        with pytest.raises(UnknownFieldError, match=f"was given `{old}` and `{new}`, which are one field"):
            RainConfig(**{old: 5, new: 5})
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        RainConfig().other  # noqa: B018
