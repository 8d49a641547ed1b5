"""`interdistill serve` refuses what cannot be served, before the model is loaded."""

from __future__ import annotations

import socket
import sys

import pytest

from hf_interdistill.cli import main
from hf_interdistill.scoring.scorer import RewardScorer


@pytest.fixture(autouse=True)
def no_model(monkeypatch, tmp_path):
    """A folder that looks like a model; loading it is a failure."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.delenv("INTERDISTILL_TOKEN", raising=False)
    monkeypatch.setattr(RewardScorer, "from_pretrained", lambda *args, **kwargs: pytest.fail("it was loaded"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "which other machines can reach, and no token is set"),
        (["--host", "::"], "which other machines can reach"),
        (["--host", "example.invalid", "--allow_no_token", "true"], "cannot listen at example.invalid:8000"),
        (["--host", "192.0.2.1", "--allow_no_token", "true", "--port", "0"], "cannot listen at 192.0.2.1:0"),
        (["--token_file", "nothing"], "no such file"),
        (["--token_file", "empty"], "has 0 characters, but must be one word"),
        (["--token_file", "two words"], "must be one word of ASCII"),
        (["--port", "65536"], "`port` 65536"),
        (["--max_wait_ms", "-1"], "`max_wait_ms` is -1.0"),
        (["--batch_size", "0"], "`batch_size` is 0"),
        (["--max_batch_tokens", "0"], "`max_batch_tokens` is 0"),
        (["--max_queue", "0"], "`max_queue` is 0"),
        (["--timeout", "0"], "`timeout` is 0.0, but must be a finite number above 0"),
        (["--max_body_mb", "inf"], "`max_body_mb` is inf"),
        (["--max_length", "20000"], "`max_length` is 20000, but a forward pass takes `max_batch_tokens` 16384"),
        (["--dtype", "int9"], "int9"),
        (["--device", "tpu9"], "`device` is 'tpu9'"),
        (["--model", "no-such-folder"], "no-such-folder"),
        (["--prot", "1"], "Did you mean `port`"),
    ],
)
def test_wrong_settings(options, message, capsys, tmp_path):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two words").write_text("a b")
    assert main(["serve", "--model", str(tmp_path / "rm"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(tmp_path / "rm"), "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.startswith("hf_interdistill.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve", "--model", str(tmp_path / "rm")]) == 2
    assert "pip install -e '.[serve]'" in capsys.readouterr().err
