"""Errors of users that reached the code as values of another kind than it was written for."""

import json

import pytest

from hf_interdistill.scoring.formatting import RewardFormatter
from hf_interdistill.scoring.model_digests import digests_of_models
from hf_interdistill.selection.job import BestOfNConfig, run_best_of_n

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(("prompt", "completion"), [("Hello", MESSAGES), (MESSAGES, "Hello")])
@pytest.mark.parametrize("method", ["render", "encode"])
def test_formatter_refuses_a_prompt_and_a_completion_of_two_kinds(method, prompt, completion):
    class Tokenizer:
        eos_token = "</s>"
        chat_template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"

        def apply_chat_template(self, messages, **_):
            raise AssertionError(f"a template was given {messages}")

    with pytest.raises(ValueError, match="use text for both or messages for both"):
        getattr(RewardFormatter(Tokenizer()), method)(prompt, completion)


def test_curve_refuses_rows_scored_before_their_prompts_had_gold_rewards(tmp_path):
    row = {"id": 1, "prompt": "Hello", "completions": ["a", "b"]}
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "scored.jsonl"
    prompts.write_text(json.dumps({**row, "gold_rewards": [0.0, 1.0]}) + "\n")
    config = BestOfNConfig(str(prompts), str(output), "no-model", curve=str(tmp_path / "curve.json"))
    output.write_text(json.dumps({**row, "rewards": [0.0, 1.0]}) + "\n")
    (tmp_path / "scored.jsonl.settings.json").write_text(
        json.dumps({**config.result_settings(), **digests_of_models({"reward_model": "no-model"})})
    )
    with pytest.raises(ValueError, match=r"id 1, but its `gold_rewards` has changed since"):
        run_best_of_n(config)
