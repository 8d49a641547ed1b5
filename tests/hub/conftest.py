"""A Hub on loopback that this process's own client talks to."""

from __future__ import annotations

import pytest
from huggingface_hub import constants
from support.hub import NO_RIGHTS, TOKEN
from support.loopback_hub import LoopbackHub

from hf_interdistill.hub import push


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub of this process. The client reads these constants from the environment when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(push, "WAIT_SECONDS", 0.0)
    with LoopbackHub({TOKEN: "user", NO_RIGHTS: "stranger"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
