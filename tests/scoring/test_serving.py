"""Serving: transformers' pipeline for real, vLLM's endpoints through a small server that answers in their format."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from support.datasets import ROOT, read_rows
from support.models import build_student
from support.tokenizers import CHAT_TEMPLATE, tokenizer_of
from tokenizers import processors

from hf_interdistill import RewardScorer
from hf_interdistill.scoring.serving import export_reward_model, read_answer, request_body, serving_text

SERVING = ROOT / "recipes" / "serving"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, SERVING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check_parity():
    return recipe("check_parity")


def llama_tokenizer(pad="<pad>"):
    """As Llama's: the tokenizer adds BOS, and so does the chat template."""
    tokenizer = tokenizer_of("bytes")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    )
    tokenizer.chat_template = "<s>" + CHAT_TEMPLATE
    tokenizer.pad_token = pad
    return tokenizer


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An exported model, and files of conversations and of plain text."""
    folder = tmp_path_factory.mktemp("serving")
    model, tokenizer = build_student("llama"), llama_tokenizer()
    model.save_pretrained(folder / "trained")
    tokenizer.save_pretrained(folder / "trained")
    recipe("export").main(
        ["--model", str(folder / "trained"), "--output", str(folder / "served"), "--dtype", "float32"]
    )
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:4]]
    plain = [{"prompt": row["prompt"][-1]["content"] + " ", "completion": row["chosen"][0]["content"]} for row in rows]
    for name, lines in (("pairs", rows), ("plain", plain)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


class VllmLike:
    """Answers `/classify` and `/pooling` as vLLM documents them: last token, sigmoid unless switched off."""

    def __init__(self, folder, fault=None):
        scorer = RewardScorer.from_pretrained(str(folder))
        self.model, self.tokenizer, self.fault = scorer.model, scorer.tokenizer, fault

    def rows(self, body):
        adds_special = body.get("add_special_tokens", "messages" not in body) or self.fault == "bos"
        if "messages" in body:
            text = self.tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=body["add_generation_prompt"]
            )
            texts = [text]
        else:
            texts = body["input"]
        return [
            self.tokenizer(text, add_special_tokens=adds_special)["input_ids"] if isinstance(text, str) else text
            for text in texts
        ]

    @torch.no_grad()
    def answer(self, path, body):
        assert not body.keys() - {
            "model", "input", "messages", "use_activation", "add_special_tokens", "add_generation_prompt", "task",
        }  # fmt: skip
        rows, rewards = self.rows(body), []
        for ids in rows:
            state = self.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            reward = float(self.model.score(state))
            if body.get("use_activation", True) or self.fault == "sigmoid":
                reward = 1 / (1 + math.exp(-reward))
            rewards.append([reward, 0.0] if self.fault == "two" else [reward])
        usage = {"prompt_tokens": sum(map(len, rows)), "total_tokens": sum(map(len, rows)), "completion_tokens": 0}
        if path == "/classify":
            items = [
                {"index": i, "label": "reward", "probs": reward, "num_classes": 1} for i, reward in enumerate(rewards)
            ]
        else:
            assert path == "/pooling" and body["task"] == "classify"
            items = [{"index": i, "object": "pooling", "data": reward} for i, reward in enumerate(rewards)]
        answer = {"id": "x", "object": "list", "created": 0, "model": "rm", "data": items[::-1]}
        return {**answer, "usage": {**usage, "prompt_tokens_details": None}}


@pytest.fixture
def serve():
    """Starts a server for a folder, returns its address; all are stopped at the end."""
    servers = []

    def start(folder, fault=None):
        backend = VllmLike(folder, fault)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = 500 if fault == "broken" else 200
                content = {"error": "out of memory"} if fault == "broken" else backend.answer(self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(check_parity, served, *arguments, rows="pairs"):
    files = ["--model", str(served / "served"), "--input", str(served / f"{rows}.jsonl")]
    return check_parity.main([*files, *arguments])


@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
@pytest.mark.parametrize(
    ("rows", "form"), [("pairs", "tokens"), ("pairs", "text"), ("pairs", "messages"), ("plain", "text")]
)
def test_server_agrees(check_parity, served, serve, capsys, endpoint, rows, form):
    url = serve(served / "served")
    status = run(check_parity, served, "--url", url, "--endpoint", endpoint, "--form", form, rows=rows)
    output = capsys.readouterr().out
    assert status == 0 and "PARITY: the rewards are the same" in output
    assert f"{8 if rows == 'pairs' else 4} rewards, 0 differ" in output


@pytest.mark.parametrize(
    ("fault", "form", "message"),
    [("sigmoid", "tokens", "sigmoid(reward)"), ("bos", "text", "special tokens were added twice")],
)
def test_faults_are_named(check_parity, served, serve, capsys, fault, form, message):
    status = run(check_parity, served, "--url", serve(served / "served", fault), "--form", form)
    output = " ".join(capsys.readouterr().out.split())
    assert status == 1 and "NO PARITY" in output and message in output


@pytest.mark.parametrize(
    ("fault", "message"), [("broken", "status 500: {"), ("two", "Is the served model a sequence classifier")]
)
def test_nothing_to_compare(check_parity, served, serve, capsys, fault, message):
    assert run(check_parity, served, "--url", serve(served / "served", fault)) == 2
    assert message in capsys.readouterr().err


def test_no_server_and_no_columns(check_parity, served, tmp_path, capsys):
    assert run(check_parity, served, "--url", "http://127.0.0.1:9", "--timeout", "2") == 2
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n')
    assert (
        check_parity.main(["--model", str(served / "served"), "--input", str(tmp_path / "other.jsonl"), "--pipeline"])
        == 2
    )
    assert "it needs one of completion, chosen, rejected" in capsys.readouterr().err


def test_another_model_is_seen(check_parity, served, serve, tmp_path, capsys):
    build_student("llama", seed=1).save_pretrained(tmp_path)
    llama_tokenizer().save_pretrained(tmp_path)
    assert run(check_parity, served, "--url", serve(tmp_path)) == 1
    assert "Does it serve this model" in " ".join(capsys.readouterr().out.split())
    assert run(check_parity, served, "--url", serve(tmp_path), "--tolerance", "1000") == 0


@pytest.mark.parametrize("rows", ["pairs", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pipeline_agrees(check_parity, served, capsys, rows, dtype):
    assert run(check_parity, served, "--pipeline", "--dtype", dtype, rows=rows) == 0


def test_pipeline_as_the_readme_calls_it(served, rows):
    """With the export's `problem_type` nothing is put on the reward; without it a sigmoid is."""
    from transformers import pipeline

    scorer = RewardScorer.from_pretrained(str(served / "served"))
    conversation = rows[0]["prompt"] + rows[0]["chosen"]
    reward = scorer([None], [conversation])[0]
    exported = pipeline("text-classification", model=str(served / "served"))
    text = exported.tokenizer.apply_chat_template(conversation, tokenize=False)
    assert exported(text, add_special_tokens=False)[0]["score"] == pytest.approx(reward, rel=1e-4)
    assert exported(text, add_special_tokens=False)[0]["label"] == "reward"
    assert exported(text)[0]["score"] != pytest.approx(reward, rel=1e-4)  # BOS twice
    trained = pipeline("text-classification", model=str(served / "trained"))
    through_sigmoid = 1 / (1 + math.exp(-reward))
    assert trained(text, add_special_tokens=False)[0]["score"] == pytest.approx(through_sigmoid, rel=1e-4)


def test_scored_token_where_padding_is_eos(check_parity, served, serve, tmp_path, caplog, capsys):
    """A closing EOS that counts as padding is not sent, so a server that scores the last token scores ours."""
    tokenizer = llama_tokenizer(pad="</s>")
    model = build_student("llama", pad_token_id=tokenizer.pad_token_id)
    export_reward_model(RewardScorer(model, tokenizer), str(tmp_path))
    assert "reads the reward one token earlier" in caplog.text
    files = ["--model", str(tmp_path), "--input", str(served / "plain.jsonl"), "--url", serve(tmp_path)]
    assert check_parity.main([*files, "--form", "tokens"]) == 0
    assert check_parity.main([*files, "--form", "text"]) == 1
    assert "special tokens were added twice, EOS is missing" in " ".join(capsys.readouterr().out.split())


def test_export_merges_an_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    base, tokenizer = build_student("llama"), llama_tokenizer()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    config = LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"], init_lora_weights=False
    )
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        adapted.base_model.model.score.modules_to_save["default"].weight.mul_(3.0)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    before = RewardScorer.from_pretrained(str(tmp_path / "adapter"))
    expected = before(["Hello. "], ["Good day."])
    export_reward_model(before, str(tmp_path / "served"))
    assert not list((tmp_path / "served").glob("adapter*"))
    after = RewardScorer.from_pretrained(str(tmp_path / "served"))
    assert after(["Hello. "], ["Good day."]) == pytest.approx(expected, rel=1e-4)
    assert after.tokenizer.chat_template == tokenizer.chat_template


def test_example_files_are_what_the_code_sends_and_reads(served):
    scorer = RewardScorer.from_pretrained(str(served / "served"))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    texts = [
        serving_text(
            scorer, {"prompt": question, "completion": [{"role": "assistant", "content": answer}]}, "completion"
        )
        for answer in ("Paris.", "Lyon, I think.")
    ]
    example = json.loads((SERVING / "classify_request.json").read_text())
    body = request_body(texts, "classify", "text", "rm")
    assert {**body, "input": None} == {**example, "input": None} and len(body["input"]) == len(example["input"])
    example = json.loads((SERVING / "pooling_request.json").read_text())
    assert request_body(texts[:1], "pooling", "messages", "rm") == example
    assert read_answer(json.loads((SERVING / "classify_response.json").read_text()), "classify", 2) == [2.25, -1.5]
    assert read_answer(json.loads((SERVING / "pooling_response.json").read_text()), "pooling", 1) == [2.25]
    backend = VllmLike(served / "served")
    for endpoint, texts_of in (("classify", texts), ("pooling", texts[:1])):
        example = json.loads((SERVING / f"{endpoint}_response.json").read_text())
        answer = backend.answer(f"/{endpoint}", request_body(texts_of, endpoint, "tokens", "rm"))
        assert answer.keys() == example.keys() and answer["data"][0].keys() == example["data"][0].keys()
        assert answer["usage"].keys() == example["usage"].keys()


def test_requests_that_make_no_sense(served):
    scorer = RewardScorer.from_pretrained(str(served / "served"))
    plain = serving_text(scorer, {"prompt": "a ", "completion": "b"}, "completion")
    talk = serving_text(scorer, {"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "completion")
    with pytest.raises(ValueError, match="takes one conversation per request, but there are 2 texts"):
        request_body([talk, talk], "classify", "messages")
    with pytest.raises(ValueError, match="1 of them plain"):
        request_body([plain], "classify", "messages")
    with pytest.raises(ValueError, match="Plain texts and conversations are in one request"):
        request_body([plain, talk], "classify", "text")
    with pytest.raises(ValueError, match=r"no data\[\].probs"):
        read_answer({"detail": "Not Found"}, "classify", 1)
