"""Models of jobs: loaded whole, adapters that can be used, settings of theirs that are told once."""

import json

import pytest
from support.models import build_student
from support.rain import QUICK, build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill import BestOfNConfig, run_best_of_n
from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.selection import job as best_of_n

peft = pytest.importorskip("peft")
TYPE = {"task_type": "CAUSAL_LM"}


@pytest.fixture
def jobs(tmp_path):
    """Both jobs on the model in a folder."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "Tell me"}\n', encoding="utf-8")
    build_student().save_pretrained(tmp_path / "rm")
    tokenizer_of("bytes").save_pretrained(tmp_path / "rm")
    common = {"prompts": str(tmp_path / "prompts.jsonl"), "generation": {"max_new_tokens": 4, "pad_token_id": 3}}

    def run_both(model) -> list[list[dict]]:
        rows = []
        for name, run, config in (
            ("rain", run_rain_job, lambda **own: RainJobConfig(rain=QUICK, scorer="support.job_scorers:short", **own)),
            ("best", run_best_of_n, lambda **own: BestOfNConfig(reward_model=str(tmp_path / "rm"), n=2, **own)),
        ):
            output = tmp_path / f"{name} of {model.name}.jsonl"
            run(config(**common, model=str(model), output=str(output)))
            rows.append([json.loads(line) for line in output.read_text(encoding="utf-8").split("\n") if line])
        return rows

    return run_both


def save(model, folder):
    model.save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return folder


def test_a_reward_model_is_no_model_to_generate_with(jobs, tmp_path):
    message = r"holds only a part of its model.*lm_head\.weight.*Use a causal language model"
    with pytest.raises(ValueError, match=message):
        jobs(tmp_path / "rm")
    config = {"prompts": str(tmp_path / "prompts.jsonl"), "output": str(tmp_path / "o"), "model": str(tmp_path / "rm")}
    with pytest.raises(ValueError, match=message):
        run_best_of_n(BestOfNConfig(**config, reward_model=str(tmp_path / "rm")))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("PROMPT_TUNING", lambda: peft.PromptTuningConfig(**TYPE, num_virtual_tokens=4)),
        ("PREFIX_TUNING", lambda: peft.PrefixTuningConfig(**TYPE, num_virtual_tokens=4)),
        ("P_TUNING", lambda: peft.PromptEncoderConfig(**TYPE, num_virtual_tokens=4, encoder_hidden_size=16)),
    ],
)
def test_adapters_of_virtual_tokens_are_refused(jobs, tmp_path, kind, config):
    base = save(build_causal(), tmp_path / "base")
    model = peft.get_peft_model(type(build_causal()).from_pretrained(base), config())
    adapter = save(model, tmp_path / "adapter")
    message = f"The adapter in .*adapter is {kind} of PEFT, whose virtual tokens .* its base model .*base"
    with pytest.raises(ValueError, match=message):
        jobs(adapter)
    config = {"prompts": str(tmp_path / "prompts.jsonl"), "output": str(tmp_path / "o"), "model": str(adapter)}
    with pytest.raises(ValueError, match=message):
        run_best_of_n(BestOfNConfig(**config, reward_model=str(tmp_path / "rm")))


def test_lora_and_tied_weights_generate_what_the_merged_model_does(jobs, tmp_path):
    base = save(build_causal(tie_word_embeddings=True), tmp_path / "base")
    config = peft.LoraConfig(**TYPE, r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(type(build_causal()).from_pretrained(base), config).eval()
    adapter = save(model, tmp_path / "adapter")
    merged = save(model.merge_and_unload(), tmp_path / "merged")
    ours, theirs, plain = jobs(adapter), jobs(merged), jobs(base)
    for mine, other, without in zip(ours, theirs, plain, strict=True):
        answers = [[row.get("completion", row.get("completions")) for row in each] for each in (mine, other, without)]
        assert answers[0] == answers[1] != answers[2]


def test_a_setting_without_effect_is_told_once_a_job(jobs, tmp_path, caplog):
    model = build_causal()
    model.generation_config.use_cache = False
    jobs(save(model, tmp_path / "model"))
    assert caplog.text.count("`use_cache=False` has no effect on RAIN") == 1


def test_progress_within_the_samples_of_a_prompt_is_shown(jobs, tmp_path, monkeypatch):
    shown = []

    class Bar(best_of_n.tqdm):
        def set_postfix(self, *args, **kwargs):
            shown.append((self.n, kwargs["candidates"]))
            super().set_postfix(*args, **kwargs)

    monkeypatch.setattr(best_of_n, "tqdm", Bar)
    model = save(build_causal(), tmp_path / "model")
    config = {"prompts": str(tmp_path / "prompts.jsonl"), "output": str(tmp_path / "o"), "model": str(model)}
    generation = {"max_new_tokens": 2, "pad_token_id": 3}
    reward = str(tmp_path / "rm")
    run_best_of_n(BestOfNConfig(**config, reward_model=reward, n=5, batch_size=2, generation=generation))
    assert shown == [(0, 2), (0, 4), (0, 5), (1, 7), (1, 9), (1, 10)]
