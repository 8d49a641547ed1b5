"""Rewards from servers of both kinds: those of the model in process, wherever a `RewardScorer` fits."""

from __future__ import annotations

import copy
import json
import re
import threading

import pytest
from support.datasets import read_rows
from support.models import build_student
from support.rain import build_causal, quick_config
from support.rl import grpo_trainer
from support.serving import served as served_by_us
from support.tokenizers import tokenizer_of
from support.vllm_server import RefusalError, VllmLike, served

from hf_interdistill import RainClient, RemoteRewardScorer, RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.rain.api.job_config import RainJobConfig
from hf_interdistill.rain.api.jobs import run_rain_job
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.builtin import RewardModelScorer
from hf_interdistill.scoring.formatting import RewardFormatter
from hf_interdistill.serving.app import RewardApp
from hf_interdistill.utils import servers
from hf_interdistill.utils.servers import ServerError

NAME = "models/rm"


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(servers, "_LONGEST_WAIT", 0.002)


@pytest.fixture(scope="module")
def reward_model():
    return build_student()


@pytest.fixture
def backend(reward_model):
    return VllmLike(None, tokenizer_of("bytes"), NAME, reward_model=reward_model)


@pytest.fixture
def url(backend):
    with served(backend) as address:
        yield address


@pytest.fixture(params=["interdistill", "classify"])
def reward_server(request, reward_model, tmp_path):
    """Options of a job with a reward model on a server of each kind."""
    if request.param == "interdistill":
        with served_by_us(RewardApp(RewardScorer(copy.deepcopy(reward_model), tokenizer_of("bytes")), NAME)) as url:
            yield {"reward_server": url, "reward_api": "interdistill"}
    else:
        tokenizer_of("bytes").save_pretrained(tmp_path / "tokenizer")
        with served(VllmLike(None, tokenizer_of("bytes"), NAME, reward_model=reward_model)) as url:
            yield {"reward_server": url, "reward_api": "classify", "reward_tokenizer": str(tmp_path / "tokenizer")}


def flags(options):
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def scorer_of(options):
    tokenizer = tokenizer_of("bytes") if options["reward_api"] == "classify" else None
    return RemoteRewardScorer(options["reward_server"], api=options["reward_api"], tokenizer=tokenizer, model=NAME)


@pytest.fixture
def local(reward_model):
    return RewardScorer(reward_model, tokenizer_of("bytes"))


@pytest.fixture
def texts():
    rows = read_rows()[:5]
    return [row["prompt"] for row in rows], [row["chosen"] for row in rows]


def remote_of(url, **settings):
    settings = {"api": "classify", "retries": 2, "model": NAME, **settings}
    return RemoteRewardScorer(url, tokenizer=tokenizer_of("bytes"), **settings)


def test_rain_is_steered_by_it(reward_server, local):
    """In process and on a server, as a scorer by itself and as the reward of a `RewardModelScorer`."""
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    exchanges = [Exchange("Tell me. ", text) for text in ("Yes.", "Never", "")]
    scorers = [RewardModelScorer(each, scale=3.0) for each in (local, scorer_of(reward_server))]
    wanted, values = [each.bind(model, tokenizer).score(exchanges[:2]) for each in scorers]
    assert values == pytest.approx(wanted, abs=1e-5)
    assert scorers[1].reward.last_token_counts == local.last_token_counts
    config = quick_config(edge_lengths=(1, 2), iterations=6)
    with served(VllmLike(model, tokenizer)) as lm_url:
        records = [
            RainClient(lm_url, "lm", tokenizer, config, scorer).generate(["Tell me", "Say"], max_new_tokens=5)
            for scorer in scorers
        ]
    assert [each.tokens for each in records[0]] == [each.tokens for each in records[1]]


def test_a_text_that_it_refuses_is_the_scorers_error_and_a_dead_server_is_not(url, backend):
    from hf_interdistill.rain.scorers.base import ScorerError

    scorer = RewardModelScorer(remote_of(url))
    scorer.score([Exchange("a", "b")])

    def refuse(path, body):
        raise RefusalError("too odd")

    backend.fault = refuse
    with pytest.raises(ScorerError, match="too odd"):
        scorer.score_batch([Exchange("a", "b")])
    backend.fault = lambda path, body: (500, "dead")
    with pytest.raises(ServerError, match="dead"):
        scorer.score_batch([Exchange("a", "b")])


@pytest.fixture
def files(tmp_path):
    rows = read_rows()[:6]
    for name, keys in (("pairs", ("prompt", "chosen", "rejected")), ("prompts", ("prompt",))):
        lines = [json.dumps({key: row[key] for key in keys}) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


def test_a_rain_job_asks_it(files, reward_server, reward_model):
    for name, model in (("lm", build_causal()), ("rm", reward_model)):
        model.save_pretrained(files / name)
        tokenizer_of("bytes").save_pretrained(files / name)
    settings = {
        **{"model": str(files / "lm"), "prompts": str(files / "prompts.jsonl"), "scorer": "reward"},
        **{"generation": {"max_new_tokens": 2}, "rain": {"iterations": 3, "extra_iterations": 1, "candidates": 2}},
    }
    served_model = {"reward_model": NAME, **reward_server}
    assert run_rain_job(RainJobConfig(output=str(files / "a.jsonl"), **settings, **served_model))["searched"] == 6
    run_rain_job(RainJobConfig(output=str(files / "b.jsonl"), **settings, reward_model=str(files / "rm")))
    there, here = [[row["tokens"] for row in lines(files / name)] for name in ("a.jsonl", "b.jsonl")]
    assert there == here
    lost = {**served_model, "reward_server": "http://127.0.0.1:9"}
    with pytest.raises(ServerError, match="could not be reached"):
        run_rain_job(RainJobConfig(output=str(files / "c.jsonl"), **settings, **lost))
    assert run_rain_job(RainJobConfig(output=str(files / "a.jsonl"), **settings, **lost))["searched"] == 0


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_score(files, reward_server, local, capsys):
    command = ["score", "--model", NAME, *flags(reward_server)]
    command += ["--input", str(files / "pairs.jsonl"), "--output", str(files / "scored.jsonl")]
    assert main(command) == 0
    rows = lines(files / "scored.jsonl")
    for side in ("chosen", "rejected"):
        wanted = local([row["prompt"] for row in rows], [row[side] for row in rows])
        assert [row[f"reward_{side}"] for row in rows] == pytest.approx(wanted, abs=1e-5)
    assert main([*command, "--dtype", "bfloat16"]) == 2
    assert "`dtype` changes nothing without a model that is loaded here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--server_timeout", "3"], "`server_timeout` changes nothing without `reward_server`"),
        (["--reward_api", "classify"], "`reward_api` changes nothing without `reward_server`"),
        (["--reward_server", "http://a", "--reward_tokenizer", "b"], "`reward_tokenizer` changes nothing without"),
        (["--reward_server", "http://a", "--reward_api", "vllm"], "must be one of interdistill, classify"),
        (["--reward_server", "http://a", "--max_length", "9"], "its own `--max_length` holds. Leave it out"),
        (["--reward_server", "a"], "must be an address such as"),
    ],
)
def test_options_that_change_nothing_are_refused(files, options, message, capsys):
    assert main(["score", "--model", NAME, "--input", str(files / "pairs.jsonl"), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_wrong_kind_of_server_is_named(files, url, capsys):
    command = ["score", "--model", NAME, "--input", str(files / "pairs.jsonl"), "--reward_server", url]
    assert main(command) == 2
    assert "is a server of vllm. " in capsys.readouterr().err


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_line_that_a_server_refuses_is_named_with_its_side(files, reward_server, local, side, capsys):
    """And those before it are kept, whatever requests they were in; a resumed job scores the rest."""
    rows = lines(files / "pairs.jsonl") * 3
    rows[13] = {**rows[13], side: [{"role": "assistant", "content": "word " * 9000}]}
    (files / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["score", "--model", NAME, "--input", str(files / "long.jsonl"), "--batch_size", "3"]
    command += [*flags(reward_server), "--output", str(files / "scored.jsonl")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"long.jsonl, line 14, `{side}`: " in error and "Row" not in error
    scored = lines(files / "scored.jsonl")
    assert len(scored) == 13
    rows[13][side] = rows[12][side]
    (files / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command) == 0
    for name in ("chosen", "rejected"):
        wanted = local([row["prompt"] for row in rows], [row[name] for row in rows])
        found = [row[f"reward_{name}"] for row in lines(files / "scored.jsonl")]
        assert found == pytest.approx(wanted, abs=1e-5)


def test_a_server_that_dies_keeps_the_rows_of_its_answers(files, url, backend, tmp_path):
    tokenizer_of("bytes").save_pretrained(tmp_path / "tokenizer")
    first, lock = [], threading.Lock()

    def fault(path, body):
        if path == "/classify":
            with lock:
                if len(first) == 2:
                    return 500, "dead"
                first.append(body["input"])

    backend.fault = fault
    command = ["score", "--model", NAME, "--input", str(files / "pairs.jsonl"), "--batch_size", "4"]
    command += ["--reward_server", url, "--reward_api", "classify", "--reward_tokenizer", str(tmp_path / "tokenizer")]
    command += ["--output", str(files / "scored.jsonl")]
    assert main(command) == 2
    formatter, rows = RewardFormatter(tokenizer_of("bytes")), lines(files / "pairs.jsonl")
    answered = [any(formatter.encode(row["prompt"], row["chosen"]) in body for body in first) for row in rows]
    leading = next((number for number, each in enumerate(answered) if not each), 6)
    assert sum(answered) == 4 and len(lines(files / "scored.jsonl")) == leading


def test_a_row_that_a_server_refuses_is_named_in_eval(files, reward_model, capsys):
    row = {"prompt": "Tell me", "chosen": "Yes, gladly.", "rejected": "No", "id": 1, "subset": "alpacaeval-easy"}
    rows = [{**row, "id": number} for number in range(4)]
    rows[2] = {**rows[2], "rejected": "word " * 100}
    (files / "bench.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    scorer = RewardScorer(copy.deepcopy(reward_model), tokenizer_of("bytes"), max_length=60)
    command = ["eval", "--benchmark", "reward_bench", "--data", str(files / "bench.jsonl"), "--model", NAME]
    with served_by_us(RewardApp(scorer, NAME)) as url:
        assert main([*command, "--output", str(files / "out"), "--reward_server", url]) == 2
    error = capsys.readouterr().err
    assert re.search(r"bench\.jsonl, line 3\b.*more than max_length=60", error), error


def test_the_command_eval(files, reward_server, reward_model, capsys):
    row = {"prompt": "Tell me", "chosen": "Yes, gladly.", "rejected": "No", "id": 1, "subset": "alpacaeval-easy"}
    (files / "bench.jsonl").write_text(json.dumps(row) + "\n")
    reward_model.save_pretrained(files / "rm")
    tokenizer_of("bytes").save_pretrained(files / "rm")
    common = ["eval", "--benchmark", "reward_bench", "--data", str(files / "bench.jsonl")]
    assert main([*common, "--model", str(files / "rm"), "--output", str(files / "here")]) == 0
    served_model = ["--model", NAME, *flags(reward_server)]
    assert main([*common, *served_model, "--output", str(files / "there")]) == 0
    scores = [lines(files / name / "scores.jsonl")[0]["rewards"] for name in ("here", "there")]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    more = ["--reward_server", *[reward_server["reward_server"]] * 3]
    assert main([*common, *served_model, *more, "--output", str(files / "no")]) == 2
    assert "1 models and 3 `reward_server`" in capsys.readouterr().err


def test_grpo_trains_against_it(files, url, monkeypatch):
    """TRL calls it as a reward function, by name."""
    called = []
    remote = remote_of(url)
    original = remote.score_ids
    monkeypatch.setattr(remote, "score_ids", lambda rows, **options: called.append(len(rows)) or original(rows))
    trainer = grpo_trainer(files / "grpo", build_causal(), [remote])
    trainer.train()
    assert called == [2]
    assert any("rewards/rm/mean" in entry for entry in trainer.state.log_history)
