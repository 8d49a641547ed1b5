"""What prevents the replay of passes is detected and logged."""

import pytest
import torch
from support.cuda_graphs import search
from support.rain import (
    OTHER,
    Repeating,
    assert_reads_separately,
    build_causal,
    build_on,
    forward,
    grown,
    likes_short_words,
    quick_config,
)

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.kv_cache import cuda_graphs as module
from hf_interdistill.rain.kv_cache.cuda_graphs import CAPTURES, unsupported_reason
from hf_interdistill.rain.kv_cache.factory import build_cache
from hf_interdistill.rain.kv_cache.forward import ForwardInput


def hook(model):
    return model.model.layers[1].register_forward_hook(lambda *_: None)


def replace_forward(model):
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda states, plain=mlp.forward: plain(states)


def compile_part(model):
    model.model.layers[0].mlp.compile(backend="eager")


IN_THE_WAY = {
    "`model.layers.1` has a forward hook": hook,
    "`forward` of module `model.layers.0.mlp` was replaced": replace_forward,
    "`model.layers.0.mlp` is compiled": compile_part,
    "in training mode": lambda model: model.train(),
    "weights are of type": lambda model: setattr(
        model.model.norm, "weight", type("Odd", (torch.nn.Parameter,), {})(model.model.norm.weight.data)
    ),
    "weights are on": lambda model: model.model.norm.to("meta"),
}


@pytest.mark.parametrize("reason", IN_THE_WAY)
def test_unsupported_reasons_are_logged_once(reason, device, caplog):
    model = build_on(device)
    assert unsupported_reason(model) is None
    IN_THE_WAY[reason](model)
    assert reason in unsupported_reason(model)
    if reason == "weights are on":  # the model could not read at all
        return
    with caplog.at_level("WARNING", logger=module.__name__):
        for _ in range(2):
            assert build_cache(model, 1).graphs is None
        assert build_cache(build_on(device), 1).graphs is not None
    assert caplog.text.count(reason) == 1
    with pytest.raises(ValueError, match=r"`cuda_graphs` is True.*Set it to None"):
        build_cache(model, 1, cuda_graphs=True)


def test_a_hook_that_comes_and_goes(device, caplog):
    model = build_on(device)
    cache, calls = grown(model), []
    (root,) = forward(cache, [ForwardInput(0, None, OTHER)])
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    with caplog.at_level("WARNING", logger=module.__name__):
        for token in (1, 2, 3):
            (read,) = forward(cache, [ForwardInput(0, root.handle, [token])])
            assert_reads_separately(model, [read], [[*OTHER, token]])
    assert len(calls) == 3 + 3 and caplog.text.count("forward hook") == 1
    handle.remove()
    for token in (4, 5):
        forward(cache, [ForwardInput(0, root.handle, [token])])
    assert len(cache.graphs) == 1


def test_hooks_of_transformers_do_not_prevent_graphs(device):
    model = build_on(device)
    with torch.no_grad():
        model(input_ids=torch.tensor([OTHER], device=device), output_hidden_states=True)
    assert unsupported_reason(model) is None


def test_under_autocast_passes_are_eager(device):
    model = build_on(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert unsupported_reason(model) == "autocast is on"
    assert unsupported_reason(model) is None


class Waits(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, states):
        return self.function(states)


class Behind(torch.nn.Module):
    """A module, and one behind it."""

    def __init__(self, inner, function):
        super().__init__()
        self.inner, self.waits = inner, Waits(function)

    def forward(self, states):
        return self.waits(self.inner(states))


@pytest.mark.parametrize(
    "waits",
    [lambda states: states * (1 if states.sum().item() else 2), lambda states: (states[states > 0], states)[1]],
)
def test_a_model_that_waits_for_its_device_is_detected(waits, device, caplog):
    model = build_on(device)
    model.model.layers[0].mlp = Behind(model.model.layers[0].mlp, waits)
    with caplog.at_level("WARNING", logger=module.__name__):
        assert build_cache(model, 1).graphs is None
    assert "waits for its device" in caplog.text and Repeating.captured == 0
    torch.rand(2, device=device)  # torch's generator works on


def test_a_replay_with_other_results_is_detected(monkeypatch, caplog):
    """Here, always the logits of the captured pass."""

    def capture(run):
        once = run().clone()
        return lambda: once

    model = build_causal()
    monkeypatch.setitem(CAPTURES, "cpu", lambda device: capture)
    with caplog.at_level("WARNING", logger=module.__name__):
        assert build_cache(model, 1).graphs is None
    assert "differ from those of separate sequences" in caplog.text


def test_a_failed_capture_is_logged_and_runs_eagerly(device, monkeypatch, caplog):
    model = build_on(device)
    cache = build_cache(model, 1)
    assert cache.graphs is not None

    def fail(device):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(CAPTURES, device, fail)
    (root,) = forward(cache, [ForwardInput(0, None, OTHER)])
    with caplog.at_level("WARNING", logger=module.__name__):
        for token in (3, 4, 5):
            (read,) = forward(cache, [ForwardInput(0, root.handle, [token])])
            assert_reads_separately(model, [read], [[*OTHER, token]])
    assert caplog.text.count("a capture or its replay failed (RuntimeError: out of memory)") == 1


def test_impossible_graphs_are_refused(model, tokenizer, caplog):
    with caplog.at_level("WARNING"):
        assert build_cache(model, 1).graphs is None
    assert not caplog.text  # nobody expects them on a CPU
    with pytest.raises(ValueError, match=r"`cuda_graphs` is True.*the model is on cpu.*Set it to None"):
        search(model, tokenizer, quick_config(cuda_graphs=True), likes_short_words)
    with pytest.raises(ValueError, match="branches by copying"):
        build_cache(build_causal("mistral"), 1, cuda_graphs=True)
    assert RainConfig(cuda_graphs=True).to_dict()["cuda_graphs"] is True


@pytest.mark.gpu
def test_a_capture_that_breaks_leaves_torch_in_order():
    """Not detected beforehand: a wait outside torch's operators."""
    model = build_on("cuda")
    model.model.layers[0].mlp = Behind(
        model.model.layers[0].mlp, lambda states: (torch.cuda.current_stream().synchronize(), states)[1]
    )
    stream = torch.cuda.current_stream()
    cache = build_cache(model, 1)
    assert cache.graphs is None and torch.cuda.current_stream() == stream
    (read,) = forward(cache, [ForwardInput(0, None, OTHER)])
    assert_reads_separately(model, [read], [OTHER])
    assert torch.rand(3, device="cuda").isfinite().all()
    grown(build_on("cuda"))  # others are captured as ever
