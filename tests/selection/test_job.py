"""Best-of-n jobs: the same samples in any batch, durable, resumable; what is kept is what the rewards say."""

from __future__ import annotations

import json
import shutil

import pytest
from support.processes import killed_when
from support.selection import PROMPTS, read, samples, write_rows
from support.tokenizers import CHAT_TEMPLATE
from transformers import AutoTokenizer

from hf_interdistill import RewardScorer, run_best_of_n
from hf_interdistill.cli import main
from hf_interdistill.scoring.best_of_n import best_of_n_kl
from hf_interdistill.scoring.formatting import template_kwargs
from hf_interdistill.scoring.prompts import tokenize_prompt


def test_a_job_samples_scores_and_keeps_the_best(job, models, tmp_path):
    config = job(selected=str(tmp_path / "best.jsonl"))
    summary = run_best_of_n(config)
    rows = read(config.output)
    assert [row["prompt"] for row in rows] == PROMPTS and [row["id"] for row in rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert all(len(row["completions"]) == len(row["rewards"]) == 4 for row in rows)
    assert rows[1]["completions"] != rows[3]["completions"]  # equal prompts, streams of their own
    scorer = RewardScorer.from_pretrained(str(models / "rm"))
    for row in rows:
        assert row["rewards"] == pytest.approx(scorer([row["prompt"]] * 4, row["completions"]), abs=1e-4)
    kept = read(tmp_path / "best.jsonl")
    assert [row["reward"] for row in kept] == [max(row["rewards"]) for row in rows]
    assert all(one["completion"] == row["completions"][row["rewards"].index(one["reward"])]
               for one, row in zip(kept, rows, strict=True))  # fmt: skip
    everything = [reward for row in rows for reward in row["rewards"]]
    assert summary["mean_reward"] == pytest.approx(sum(everything) / 20)
    assert summary["best_reward"] == pytest.approx(sum(row["reward"] for row in kept) / 5)
    assert (summary["candidates"], summary["scored"], summary["selected"]) == (20, 5, 5)
    assert summary["kl"] == best_of_n_kl(4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scored.jsonl", "scored.jsonl.settings.json"]


def test_tools_of_a_row_are_read_by_policy_and_reward_model(job, models, tmp_path):
    policy, reward = str(tmp_path / "policy"), str(tmp_path / "reward")
    for folder, source in ((policy, models / "policy"), (reward, models / "rm")):
        shutil.copytree(source, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}{{ mark }}" + CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
    prompt = [{"role": "user", "content": "Weather?"}]
    columns = {"tools": [{"name": "weather", "zone": None}], "chat_template_kwargs": {"mark": "zebra"}}
    rows = [{"prompt": prompt, "id": "p0"}, {"prompt": prompt, "id": "p0 with tools", **columns}]
    config = job(prompts=write_rows(tmp_path / "tools.jsonl", rows), model=policy, reward_model=reward)
    run_best_of_n(config)
    scorer = RewardScorer.from_pretrained(reward)
    for row in read(config.output):
        given = {name: [row[name]] * 4 for name in columns if name in row}
        assert row["rewards"] == pytest.approx(scorer([prompt] * 4, row["completions"], **given), abs=1e-4)
    assert row["tools"] == columns["tools"]
    with_tools = tokenize_prompt(scorer.tokenizer, prompt, template_kwargs(row))[0]
    text = '[{"name": "weather"}]zebra<|user|>\nWeather?<|end|>\n<|assistant|>\n'
    assert with_tools.tolist() == scorer.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_samples_depend_on_seed_and_prompt_alone(job, tmp_path):
    config = job()
    run_best_of_n(config)
    expected = samples(config.output)
    for number, batch_size in enumerate((1, 3, 64)):
        other = job(output=str(tmp_path / f"{number}.jsonl"), batch_size=batch_size)
        run_best_of_n(other)
        assert samples(other.output) == expected
    more = job(output=str(tmp_path / "more.jsonl"), n=6)
    run_best_of_n(more)
    assert [row[1][:4] for row in samples(more.output)] == [row[1] for row in expected]
    rows = [{"prompt": PROMPTS[2], "id": "p2"}, {"prompt": PROMPTS[0], "id": "p0"}]
    few = job(output=str(tmp_path / "few.jsonl"), prompts=write_rows(tmp_path / "few_prompts.jsonl", rows))
    run_best_of_n(few)
    assert samples(few.output) == [expected[2], expected[0]]
    seeded = job(output=str(tmp_path / "seeded.jsonl"), seed=1)
    run_best_of_n(seeded)
    assert samples(seeded.output) != expected


def test_a_killed_job_resumes_and_ends_the_same(job, tmp_path):
    rows = [{"prompt": f"Tell me about {i}", "id": i} for i in range(24)]
    prompts = write_rows(tmp_path / "many.jsonl", rows)
    config = job(prompts=prompts, batch_size=4, generation={"max_new_tokens": 8})
    shard = tmp_path / "out" / "scored.jsonl.shard-00000-of-00001"
    killed_when(lambda: shard.is_file() and shard.read_text().count("\n") >= 2, lambda: run_best_of_n(config))
    kept = (
        read(shard)
        if shard.read_text().endswith("\n")
        else [json.loads(x) for x in shard.read_text().split("\n")[:-1]]
    )
    assert 2 <= len(kept) < 24
    with shard.open("a") as file:
        file.write('{"id": 23, "completions": ["cut sho')  # as a kill in mid-write leaves it
    summary = run_best_of_n(config)
    assert summary["scored"] == 24 - len(kept)
    whole = job(prompts=prompts, output=str(tmp_path / "whole.jsonl"), batch_size=4, generation={"max_new_tokens": 8})
    run_best_of_n(whole)
    assert samples(config.output) == samples(whole.output)
    assert run_best_of_n(config)["scored"] == 0


def test_ready_made_candidates_of_conversations(job, models, tmp_path):
    prompt = [{"role": "user", "content": "Tell me"}]
    message = [{"role": "assistant", "content": "Yes, of course."}]
    rows = [
        {"prompt": prompt, "completions": ["No.", message, "No.", "Perhaps"]},
        {"prompt": "Why? ", "completions": ["Because.", "So."]},
    ]
    selected = str(tmp_path / "pairs.jsonl")
    config = job(
        model=None, generation={}, prompts=write_rows(tmp_path / "ready.jsonl", rows), selected=selected, keep="pairs"
    )
    summary = run_best_of_n(config)
    scorer = RewardScorer.from_pretrained(str(models / "rm"))
    texts = ["No.", "Yes, of course.", "No.", "Perhaps"]
    expected = scorer([prompt] * 4, [[{"role": "assistant", "content": text}] for text in texts])
    first, second = read(config.output)
    assert first["rewards"] == pytest.approx(expected, abs=1e-4) and first["id"] == 1
    assert second["rewards"] == pytest.approx(scorer(["Why? "] * 2, ["Because.", "So."]), abs=1e-4)
    assert "kl" not in summary and summary["candidates"] == 6  # 4 and 2 candidates
    chat, text = read(selected)
    best, worst = expected.index(max(expected)), expected.index(min(expected))
    assert chat["chosen"] == [{"role": "assistant", "content": texts[best]}]
    assert chat["rejected"] == [{"role": "assistant", "content": texts[worst]}]
    assert isinstance(text["chosen"], str)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "best"}, "`keep` is 'best'"),
        ({"n": 0}, "`n` is 0"),
        ({"generation": {"max_new_token": 3}}, "the nearest is `max_new_tokens`"),
        ({"generation": {"num_beams": 2}}, "`num_beams: 2`"),
        ({"generation": {"do_sample": False}}, "`do_sample: False`"),
        ({"generation": {"max_time": 2.0}}, "`max_time: 2.0`, but candidates would then depend on the machine"),
        ({"generation": {"prompt_lookup_num_tokens": 2}}, "`prompt_lookup_num_tokens: 2`"),
        ({"generation": {"return_dict_in_generate": True}}, "a job keeps only texts"),
        ({"generation": {"max_new_tokens": 2, "min_length": 3}}, "`min_length: 3`, but it counts the padding"),
        ({"generation": {"max_length": 3}}, r"Prompt 'p0' of .*`max_length=3` leaves no room"),
        ({"model": None}, "no `model` to sample from"),
        ({"margin": 1.0, "selected": "x"}, "`margin` changes nothing with `keep: completions`"),
        ({"keep": "pairs", "top_k": 2, "selected": "x"}, "`top_k` changes nothing with `keep: pairs`"),
        ({"keep": "pairs"}, "Set `selected`"),
        ({"curve": "x.json"}, "`curve` needs scores that count as the truth"),
        ({"generation": {}}, "neither `max_new_tokens` nor `max_length`"),
        ({"generation": {"max_new_tokens": 600}}, r"Prompt 'p0' of .*exceeds the model's context of 512"),
    ],
)
def test_bad_settings_are_named(job, changes, message):
    with pytest.raises(ValueError, match=message):
        run_best_of_n(job(**changes))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "has no list of `completions`"),
        ({"prompt": "a", "completions": []}, "has no list of `completions`"),
        ({"prompt": "a", "completions": [1]}, "neither texts nor messages"),
        ({"prompt": "a", "completions": ["b"], "gold_rewards": [1.0, 2.0]}, "1 completions, but 2 `gold_rewards`"),
    ],
)
def test_bad_candidates_are_named(job, tmp_path, row, message):
    prompts = write_rows(tmp_path / "bad.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        run_best_of_n(job(model=None, generation={}, prompts=prompts))


def test_the_command(job, tmp_path, capsys):
    recipe = tmp_path / "best.yaml"
    config = job()
    recipe.write_text(
        f"prompts: {config.prompts}\noutput: {config.output}\nreward_model: {config.reward_model}\n"
        f"model: {config.model}\nn: 2\ngeneration:\n  max_new_tokens: 3\n  temperature: 0.7\n"
    )
    assert main(["best-of-n", "--config", str(recipe), "--seed", "3"]) == 0
    assert "best_reward" in capsys.readouterr().out and len(read(config.output)) == 5
    assert main(["best-of-n", "--config", str(recipe), "--seed", "4"]) == 2
    assert "made with other settings (seed differ)" in capsys.readouterr().err
    assert main(["best-of-n", "--config", str(recipe), "--topk", "4"]) == 2
    assert "Did you mean `top_k`" in capsys.readouterr().err
