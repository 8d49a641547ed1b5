"""Long jobs: durable, resumable, shared by processes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
from support import job_scorers
from support.datasets import ROOT
from support.processes import killed_when
from support.rain import QUICK, build_causal, encode, likes_short_words, quick_config
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.utils.fields import UnknownFieldError
from hf_interdistill.utils.sharded_jobs import FailedRowsError

PROMPTS = ["How do I bake bread?", "Tell me", "Why is the sky blue?", "Tell me", "I\u2028am", "What is a piano?"]


@pytest.fixture
def job(tmp_path):
    build_causal().save_pretrained(tmp_path / "model")
    tokenizer_of("bytes").save_pretrained(tmp_path / "model")
    rows = [{"prompt": prompt, "id": f"row {number}"} for number, prompt in enumerate(PROMPTS)]
    write_rows(tmp_path / "prompts.jsonl", rows)

    def make(**changes) -> RainJobConfig:
        rain = {**QUICK, "max_batch_size": 2, **changes.pop("rain", {})}
        settings = {
            "model": str(tmp_path / "model"),
            "prompts": str(tmp_path / "prompts.jsonl"),
            "output": str(tmp_path / "out" / "answers.jsonl"),
            "generation": {"max_new_tokens": 6, "pad_token_id": 3},
            "scorer": "support.job_scorers:short",
        }
        return RainJobConfig(**{**settings, **changes, "rain": rain})

    return make


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def answers(path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def completions(path) -> list[tuple]:
    return [(row["id"], row["completion"], row["tokens"]) for row in answers(path)]


def test_a_job_writes_what_generate_gives(job, tmp_path, model):
    result = run_rain_job(job(trees=str(tmp_path / "trees"), tree_format="html"))
    rows = answers(result["output"])
    assert [row["id"] for row in rows] == [f"row {number}" for number in range(6)]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.settings.json",
    ]
    assert len(list((tmp_path / "trees").glob("row_*.html"))) == 6
    tokenizer = tokenizer_of("bytes")
    output = model.generate(
        **encode(tokenizer, PROMPTS),
        strategy="rain",
        tokenizer=tokenizer,
        rain_config=quick_config(),
        rain_scorer=likes_short_words,
        max_new_tokens=6,
        return_dict_in_generate=True,
    )
    assert [row["tokens"] for row in rows] == [record.tokens for record in output.rain]
    assert rows[1]["tokens"] != rows[3]["tokens"]  # equal prompts, streams of their own
    assert (result["prompts"], result["searched"]) == (6, 6)
    assert result["forward_tokens"] == sum(row["stats"]["forward_tokens"] for row in rows)
    again = run_rain_job(job())
    assert again["searched"] == 0 and answers(again["output"]) == rows


def launch(config: RainJobConfig, *command, **environment) -> subprocess.Popen:
    code = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job\n"
        "run_rain_job(RainJobConfig(**json.load(open(sys.argv[1]))))\n"
        "from accelerate import PartialState\n"
        "print(f'searched by one of {PartialState().num_processes} processes\\n', end='', flush=True)\n"
    )
    script = os.path.join(os.path.dirname(config.prompts), "run.py")
    settings = os.path.join(os.path.dirname(config.prompts), "job.json")
    with open(script, "w") as file:
        file.write(code)
    with open(settings, "w") as file:
        json.dump(asdict(config), file)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *command, script, settings],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_job_resumes_and_ends_the_same(job, tmp_path, monkeypatch):
    config = job(scorer="support.job_scorers:slow", rain={"max_batch_size": 1})
    monkeypatch.setenv("RAIN_TEST_DELAY", "0.05")
    shard = tmp_path / "out" / "answers.jsonl.shard-00000-of-00001"
    killed_when(lambda: shard.is_file() and shard.read_text().count("\n") >= 2, lambda: run_rain_job(config))
    monkeypatch.delenv("RAIN_TEST_DELAY")
    kept = completions(shard)
    assert 2 <= len(kept) < 6
    with shard.open("a") as file:
        file.write('{"id": "row 5", "completion": "cut sho')  # as a kill in mid-write leaves it
    result = run_rain_job(config)
    assert result["searched"] == 6 - len(kept)
    whole = run_rain_job(job(output=str(tmp_path / "whole" / "answers.jsonl")))
    assert completions(result["output"]) == completions(whole["output"])
    assert set(map(str, kept)) <= set(map(str, completions(result["output"])))


@pytest.mark.slow  # `trust/test_processes.py` does it by command
def test_processes_share_the_prompts(job, tmp_path):
    config = job()
    # Not `accelerate launch --cpu --num_processes 2`: without MPI it starts one process.
    process = launch(config, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert log.count("searched by one of 2 processes") == 2
    alone = run_rain_job(job(output=str(tmp_path / "alone.jsonl")))
    assert completions(config.output) == completions(alone["output"])
    assert not list((tmp_path / "out").glob("*.shard-*"))


def test_a_failing_scorer_loses_nothing(job, tmp_path):
    job_scorers.failing.calls = 0
    config = job(scorer="support.job_scorers:failing", rain={"max_batch_size": 1})
    with pytest.raises(FailedRowsError, match=r"[1-5] of 6 rows of .* have an `error`.*no more"):
        run_rain_job(config)
    rows = answers(tmp_path / "out" / "answers.jsonl")
    kept = [row for row in rows if "error" not in row]
    assert [row["prompt"] for row in rows] == PROMPTS and 1 <= len(kept) < 6
    assert all(set(row) == {"id", "prompt", "error"} for row in rows if row not in kept)
    job_scorers.failing.calls = -10_000
    assert run_rain_job(config)["searched"] == 6 - len(kept)
    whole = run_rain_job(job(output=str(tmp_path / "whole.jsonl"), scorer="support.job_scorers:failing"))
    assert completions(config.output) == completions(whole["output"])


def test_other_settings_are_refused_or_start_anew(job):
    first = run_rain_job(job())
    before = completions(first["output"])
    with pytest.raises(ValueError, match=r"made with other settings \(seed|made with other settings \(rain"):
        run_rain_job(job(rain={"seed": 9}))
    assert completions(first["output"]) == before
    run_rain_job(job(rain={"seed": 9}, overwrite=True))
    assert completions(first["output"]) != before


def test_a_file_of_unknown_origin_is_not_touched(job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "answers.jsonl").write_text("precious\n")
    with pytest.raises(ValueError, match=r"settings .* are missing: it may be no output of a job"):
        run_rain_job(job())
    assert (tmp_path / "out" / "answers.jsonl").read_text() == "precious\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "Line 2 of .* is not a JSON object"),
        ('["list"]', "is not a JSON object"),
        ('{"text": "x"}', "needs a `prompt`"),
        ('{"prompt": ""}', "needs a `prompt`"),
        ('{"prompt": []}', "needs a `prompt`"),
        ('{"prompt": "x", "id": "first"}', "has the id 'first'"),
        ('{"prompt": "x", "id": 1.5}', "has the id 1.5"),
        ('{"prompt": "x", "id": true}', "has the id True"),
    ],
)
def test_bad_rows_are_named_by_line(job, tmp_path, line, message):
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "Tell me", "id": "first"}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        run_rain_job(job())


def test_a_prompt_that_does_not_fit_is_named_before_work_starts(job, tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Tell me"}, {"prompt": "word " * 600, "id": "long"}])
    with pytest.raises(ValueError, match=r"Prompt 'long' of .*: The prompt has \d+ tokens, but the model's context"):
        run_rain_job(job())
    (tmp_path / "prompts.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        run_rain_job(job())
    with pytest.raises(ValueError, match="there is no such file"):
        run_rain_job(job(prompts=str(tmp_path / "none.jsonl")))


def test_messages_go_through_the_chat_template(job, tmp_path, model):
    messages = [{"role": "user", "content": "Tell me"}]
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": messages}])
    rows = answers(run_rain_job(job())["output"])
    assert rows[0]["prompt"] == messages
    tokenizer = tokenizer_of("bytes")
    inputs = tokenizer.apply_chat_template(
        [messages], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    sequences = model.generate(
        input_ids=inputs["input_ids"],
        strategy="rain",
        tokenizer=tokenizer,
        rain_config=quick_config(),
        rain_scorer=likes_short_words,
        max_new_tokens=6,
    )
    assert sequences[0, inputs["input_ids"].shape[1] :].tolist() == rows[0]["tokens"]


def test_generation_settings_count(job, tmp_path):
    config = job(generation={"max_new_tokens": 9, "stop_strings": ["e"], "pad_token_id": 3})
    rows = answers(run_rain_job(config)["output"])
    assert {row["finish_reason"] for row in rows} <= {"stop", "length", "eos"}
    assert all("e" not in row["completion"][:-8] for row in rows)
    free = run_rain_job(job(output=str(tmp_path / "free.jsonl")))
    assert completions(free["output"]) != completions(config.output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, "the nearest is `model`"),
        ({"generation": {"max_new_token": 3}}, "the nearest is `max_new_tokens`"),
        ({"rain": {"min_visit": 3}}, "the nearest is `min_visits`"),
        ({"tree_format": "svg"}, "`tree_format` is 'svg'"),
        ({"scorer": "reward"}, "requires `reward_model`"),
        ({"reward_model": "x"}, "requires `reward_model`"),
    ],
)
def test_bad_settings_are_named(job, changes, message):
    with pytest.raises((UnknownFieldError, ValueError), match=message):
        job(**changes)


@pytest.mark.parametrize("scorer", ["nothing", "no.module:function", "support.job_scorers:missing"])
def test_a_scorer_that_cannot_be_found_is_named(job, scorer):
    with pytest.raises(ValueError, match=f"`scorer` is '{scorer}'"):
        run_rain_job(job(scorer=scorer))


def test_a_reward_model_can_judge_a_job(job, tmp_path, monkeypatch):
    class Lengths:
        def __call__(self, prompts, completions):
            return [float(len(completion)) for completion in completions]

        def to(self, device):
            return self

    def open_scorer(name, **options):
        assert name == "some/reward-model" and options == {"batch_size": 16, "dtype": "float32"}
        return Lengths()

    monkeypatch.setattr("hf_interdistill.scoring.opening.open_scorer", open_scorer)
    results = {}
    for number, (scale, center) in enumerate([(1.0, 0.0), (50.0, 0.0), (50.0, 20.0)]):
        config = job(
            scorer="reward",
            reward_model="some/reward-model",
            reward_scale=scale,
            reward_center=center,
            trees=str(tmp_path / f"trees{number}"),
            output=str(tmp_path / f"{number}.jsonl"),
        )
        run_rain_job(config)
        files = sorted((tmp_path / f"trees{number}").iterdir())
        results[scale, center] = [json.loads(file.read_text())["root"]["value"] for file in files]
    first, flat, centered = results.values()
    assert max(flat) < min(first) and max(centered) < min(flat)


def test_the_model_is_loaded_in_the_dtype_asked_for(job):
    import torch

    from hf_interdistill.rain.api.jobs import _load

    assert _load(job(), "cpu")[0].dtype == torch.float32
    assert _load(job(dtype="bfloat16"), "cpu")[0].dtype == torch.bfloat16
