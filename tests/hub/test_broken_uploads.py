"""Interrupted uploads are retried by the client, by us or by the user: no half model, nothing sent twice."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants
from support.datasets import ROOT
from support.hub import NO_RIGHTS, TOKEN, save_full
from support.loopback_hub import Fault

from hf_interdistill.cli import main
from hf_interdistill.hub import push


@pytest.fixture
def command(tmp_path):
    return ["push", "--model", str(save_full(tmp_path / "rm")), "--repo_id", "user/rm"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "/storage/", "drop"),
        Fault("PUT", "/storage/", "status", 503),
        Fault("POST", "/preupload/", "drop"),
        Fault("POST", "/api/repos/create", "status", 502),
        Fault("POST", "/commit/", "drop"),
        Fault("POST", "/commit/", "status", 500, times=2),
        Fault("POST", "/commit/", "lost_reply"),
    ],
    ids=lambda fault: f"{fault.method} {fault.path} {fault.kind}",
)
def test_transient_failures_are_retried(fault, hub, command):
    fault = Fault(**vars(fault))
    hub.faults = [fault]
    assert main(command) == 0
    assert fault.times == 0
    assert "model.safetensors" in hub.files("user/rm") and hub.commits("user/rm") == 2  # its creation, the model


def test_lasting_failures_are_explained_and_resumed_later(hub, command, capsys):
    hub.faults = [Fault("POST", "/commit/", "status", 503, times=push.ATTEMPTS)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "The upload to user/rm failed (status 503). Run the same command again" in error and TOKEN not in error
    assert hub.commits("user/rm") == 1 and len(hub.uploads()) == 1
    assert main(command) == 0
    assert hub.commits("user/rm") == 2 and len(hub.uploads()) == 1, "the weights were sent twice"
    assert main(command) == 0
    assert hub.commits("user/rm") == 2, "nothing had changed"


def test_a_killed_upload_resumes_where_it_stopped(hub, tmp_path):
    folder = save_full(tmp_path / "rm", max_shard_size="80KB")
    shards = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("model-*.safetensors"))]
    assert len(shards) >= 3
    hub.faults = [Fault("PUT", shards[1], "hang")]
    arguments = ["push", "--model", str(folder), "--repo_id", "user/rm"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_interdistill.cli", *arguments],
        env={**hub.environment(TOKEN, tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    others = set(shards) - {shards[1]}
    while not (hub.is_hanging.is_set() and others <= set(hub.objects)):
        assert process.poll() is None, "the process ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert hub.commits("user/rm") == 1, "half a model was committed"
    before = len(hub.uploads())
    assert main(arguments) == 0
    assert hub.uploads()[before:] == [f"/storage/{shards[1]}"]
    assert {path.name for path in folder.glob("model*")} <= set(hub.files("user/rm"))


@pytest.mark.parametrize(
    ("token", "options", "message"),
    [
        (None, [], "needs an access token, and there is none"),
        ("hf_" + "wrong" * 7, [], "failed (status 401). The Hub refused the token"),
        (NO_RIGHTS, [], "failed (status 403). The token has no write access there"),
        (TOKEN, ["--revision", "refs/pr/9"], "failed (status 404). There is no such repository or revision"),
    ],
)
def test_refusals_give_the_fix_and_no_token(token, options, message, hub, command, monkeypatch, capsys, caplog):
    assert main(command) == 0
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    uploads = len(hub.uploads())
    assert main([*command, *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(hub.uploads()) == uploads
    everything = captured.err + captured.out + caplog.text
    assert all(secret not in everything for secret in (TOKEN, NO_RIGHTS, token or TOKEN))


def test_a_token_that_the_hub_repeats_is_not_printed(hub, command, capsys, caplog):
    hub.faults = [Fault("POST", "/commit/", status=418, message=f"No tea for Bearer {TOKEN}.")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "failed (status 418). The Hub said: " in error and "No tea for Bearer <token>" in error
    assert TOKEN not in error + caplog.text


def test_a_public_repository_is_not_mistaken_for_a_private_one(hub, command, capsys):
    assert main(command) == 0
    assert main([*command, "--private", "true"]) == 2
    assert "was to be private, but it exists and is public" in capsys.readouterr().err
    assert hub.commits("user/rm") == 2


def test_no_connection(hub, command, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(command) == 2
    assert "failed (the connection broke)" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(command) == 2
    assert "HF_HUB_OFFLINE is set. Unset it." in capsys.readouterr().err
