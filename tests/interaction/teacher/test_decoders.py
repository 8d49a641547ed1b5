"""A causal language model as teacher: its mask lifted in every layer, against attention written out in plain torch."""

from __future__ import annotations

import json

import pytest
import torch
from support.models import STUDENT_FAMILIES, build_student, needs_liftable_masks
from support.teachers import LEARNABLE, batch_of, settings
from support.tokenizers import tokenizer_of
from torch.nn.functional import silu
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_interdistill import InteractionTeacher
from hf_interdistill.interaction.attention.interceptor import layer_of_modules
from hf_interdistill.interaction.attention.map_sources import dense
from hf_interdistill.interaction.attention.maps import pool_attention
from hf_interdistill.interaction.data.orders import select_order
from hf_interdistill.interaction.teacher.reading import AttentionProbe

pytestmark = needs_liftable_masks
ATTENTIONS = ("sdpa", "eager")
FAMILIES = [
    (family, attention)
    for family in (*STUDENT_FAMILIES, "qwen2", "gemma", "olmo2", "starcoder2", "opt")
    for attention in ATTENTIONS
    if (family, attention) != ("gemma2", "sdpa")  # transformers has none
]
LENGTH = 12
MASKS = {"none": [0, 0], "right": [0, -4], "left": [0, 4]}  # padding of the two rows


def decoder(family="llama", attention="sdpa", **changes):
    return build_student(family, attention, **changes).base_model.eval()


def teacher_of(model, **options) -> InteractionTeacher:
    return InteractionTeacher(model, tokenizer_of("bytes"), **{"max_length": 200, **options}).freeze()


def ids_and_mask(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 900, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate(MASKS[kind]):
        if padding:
            mask[row, slice(0, padding) if padding > 0 else slice(padding, None)] = 0
    return ids, mask


def llama_by_hand(model, ids, mask, window: int | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Last states and the attention of each layer of a Llama or Mistral in which all tokens see all others.

    window: the largest distance that they see.
    """
    config, (batch, length) = model.config, ids.shape
    width, heads = config.head_dim, config.num_attention_heads
    places = torch.arange(length)
    angles = places[:, None] * config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    sees = mask[:, None, None].bool().expand(batch, 1, length, length)
    if window is not None:
        sees = sees & ((places[:, None] - places).abs() <= window)

    def norm(module, states):
        return module.weight * states * (states.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()

    def turned(states):
        one, other = states.chunk(2, -1)
        return states * cos + torch.cat([-other, one], -1) * sin

    def split(linear, states):
        return linear(states).view(batch, length, -1, width).transpose(1, 2)

    states, weights = model.embed_tokens(ids), []
    for layer in model.layers:
        own, inner = layer.self_attn, norm(layer.input_layernorm, states)
        query, key, value = (split(linear, inner) for linear in (own.q_proj, own.k_proj, own.v_proj))
        key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (turned(key), value))
        scores = (turned(query) @ key.transpose(2, 3) * width**-0.5).masked_fill(~sees, -torch.inf)
        weights.append(scores.softmax(-1).nan_to_num())
        states = states + own.o_proj((weights[-1] @ value).transpose(1, 2).flatten(2))
        inner, mlp = norm(layer.post_attention_layernorm, states), layer.mlp
        states = states + mlp.down_proj(silu(mlp.gate_proj(inner)) * mlp.up_proj(inner))
    return norm(model.norm, states), weights


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("family", "window"), [("llama", None), ("mistral", 3)])
@torch.no_grad()
def test_states_are_those_of_full_attention(family, window, attention, padding):
    model = decoder(family, attention, **({"sliding_window": window} if window else {}))
    ids, mask = ids_and_mask(padding)
    causal = model(ids, attention_mask=mask).last_hidden_state
    lifted = teacher_of(model).network.encode(ids, mask, is_pairwise=False).last_hidden_state
    expected, _ = llama_by_hand(model, ids, mask, window)
    real = mask.bool()
    torch.testing.assert_close(lifted[real], expected[real], rtol=1e-4, atol=1e-4)
    assert (lifted - causal)[real].abs().max() > 1e-2


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
@pytest.mark.parametrize("padding", ["none", "right"])
@torch.no_grad()
def test_every_layer_of_every_family_sees_later_tokens_and_no_padding(family, attention, padding):
    """The last token is changed where each layer reads it, so that no layer below has a part in what it does."""
    model = teacher_of(decoder(family, attention)).network.encoder
    ids, mask = ids_and_mask(padding)
    blocks = {}
    for module, layer in layer_of_modules(model).items():
        blocks.setdefault(layer, module)  # the first module of a layer is its block
    for layer, block in blocks.items():
        states = {}
        for is_changed in (False, True):

            def change(module, args, kwargs, is_changed=is_changed):
                states_in = (args[0] if args else kwargs.pop("hidden_states")).clone()
                states_in[:, -1] += 3.0 * is_changed * torch.linspace(-1, 1, states_in.shape[-1])
                return (states_in, *args[1:]), kwargs

            def keep(module, args, output, is_changed=is_changed, states=states):
                states[is_changed] = output[0] if isinstance(output, tuple) else output

            hooks = block.register_forward_pre_hook(change, with_kwargs=True), block.register_forward_hook(keep)
            model(ids, attention_mask=mask)
            for hook in hooks:
                hook.remove()
        moved = (states[True] - states[False]).abs().amax(-1) > 1e-6
        assert moved[0, :-1].all(), f"layer {layer}: of the row without padding, {moved[0].tolist()}"
        assert moved[1, :8].any() == (padding == "none"), f"layer {layer}: of the padded row, {moved[1].tolist()}"


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
@torch.no_grad()
def test_what_is_saved_reads_both_ways_wherever_it_is_loaded(family, attention, tmp_path, rows):
    teacher = teacher_of(decoder(family, attention), max_length=16)
    teacher.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["is_causal"] is False
    loaded = InteractionTeacher.from_pretrained(str(tmp_path), attn_implementation=attention)
    assert loaded.format == teacher.format and loaded.max_length == 16
    margins = [each.score_pairs(rows[:2], is_progress_shown=False) for each in (teacher, loaded)]
    assert torch.equal(*margins) and margins[0].abs().min() > 0
    plain = AutoModel.from_pretrained(tmp_path, attn_implementation=attention).eval()
    for padding in ("none", "right"):
        ids, mask = ids_and_mask(padding)
        expected = teacher.network.encode(ids, mask, is_pairwise=False).last_hidden_state
        torch.testing.assert_close(plain(ids, attention_mask=mask).last_hidden_state, expected)


@pytest.mark.parametrize("interaction_layers", [0, 1])
@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_its_map_is_its_attention(rows, attention, interaction_layers):
    model = decoder(attention=attention)
    teacher = teacher_of(model, interaction_layers=interaction_layers)
    both, units = batch_of(teacher, rows[:4])
    order = torch.tensor([0, 1, 0, 1])
    margins, sources = teacher.forward(both, order, [-1], units)
    expected = teacher.score_pairs(rows[:4], is_progress_shown=False)[range(4), order]
    torch.testing.assert_close(margins, expected, rtol=1e-4, atol=1e-5)
    sums = dense(sources[0]).sum(-1)
    assert ((sums > 0) == sources[0].present).all() and (sums < 1 + 1e-5).all()
    if not interaction_layers:
        batch = select_order(both, order)
        _, weights = llama_by_hand(model, batch["input_ids"], batch["attention_mask"], None)
        torch.testing.assert_close(
            dense(sources[0]), pool_attention(weights[-1].mean(1), batch["units"], units), rtol=1e-3, atol=1e-5
        )
    else:
        swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:4]]
        torch.testing.assert_close(teacher.score_pairs(swapped, is_progress_shown=False)[:, 0], -margins)


def test_rows_end_texts_with_the_end_token_and_need_no_padding_token():
    tokenizer = tokenizer_of("bytes")
    tokenizer.pad_token = None
    form = InteractionTeacher(decoder(), tokenizer).format
    assert (form.prefix, form.middle, form.suffix, form.pad_id) == ((), (2,), (2,), 2) and not form.has_types
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    form = InteractionTeacher(decoder(), tokenizer).format
    assert (form.prefix, form.middle, form.suffix) == ((1,), (2,), (2,))
    tokenizer.eos_token = None
    tokenizer.pad_token = "<pad>"
    with pytest.raises(ValueError, match=r"a decoder whose tokenizer has an end token \(`eos_token`\)"):
        InteractionTeacher(decoder(), tokenizer)


def test_a_decoder_learns_saves_and_loads(tmp_path):
    tokenizer = tokenizer_of("bytes")
    tokenizer.pad_token = None
    model = build_student(num_hidden_layers=2)
    torch.nn.init.normal_(model.base_model.embed_tokens.weight, std=0.3)
    teacher = InteractionTeacher(model, tokenizer, max_length=64)
    metrics = teacher.fit(LEARNABLE, args=settings(tmp_path, warm_start_epochs=8, num_train_epochs=2))
    assert metrics["accuracy"] > 0.8 and metrics["is_better_than_chance"] and metrics["order_agreement"] == 1
    loaded = InteractionTeacher.from_pretrained(str(tmp_path))
    assert loaded.metrics == metrics and loaded.interaction_layers == 1
    margins = [each.score_pairs(LEARNABLE[:5], is_progress_shown=False) for each in (teacher, loaded)]
    torch.testing.assert_close(*margins)


@torch.no_grad()
def test_a_head_is_left_out_and_folders_of_language_models_are_taken(tmp_path, rows):
    config = build_student().config
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    tokenizer_of("bytes").save_pretrained(tmp_path)
    states = []
    for teacher in (teacher_of(model), InteractionTeacher.from_pretrained(str(tmp_path)).freeze()):
        assert type(teacher.network.encoder).__name__ == "LlamaModel"
        ids, mask = ids_and_mask("right")
        states.append(teacher.network.encode(ids, mask, is_pairwise=False).last_hidden_state)
    torch.testing.assert_close(*states)
    short = InteractionTeacher.from_pretrained(str(tmp_path), num_hidden_layers=2)
    assert short.num_layers == 2 and short.interaction_layers == 1
    short.save_pretrained(str(tmp_path / "short"))
    assert InteractionTeacher.from_pretrained(str(tmp_path / "short")).num_layers == 2


def test_windows_shorter_than_a_row_are_refused_and_longer_ones_are_none(rows):
    first = torch.zeros(2, dtype=torch.long)
    for window, longest in ((16, 200), (200, 200)):
        model = decoder(
            "gemma3_text", sliding_window=window, layer_types=["full_attention", *["sliding_attention"] * 2]
        )
        teacher = teacher_of(model, max_length=longest, interaction_layers=0)
        batch, units = batch_of(teacher, rows[:2])
        if window < longest:
            with pytest.raises(
                ValueError, match=r"layer 2 .* window of 16 tokens .* \(\[0\]\), or `teacher_max_length`"
            ):
                teacher.forward(batch, first, [-1], units)
            teacher.forward(batch, first, [0], units)
        else:
            assert dense(teacher.forward(batch, first, [-1], units)[1][0]).isfinite().all()


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("falcon", r"FalconModel .* layers \[0, 1, 2\] do no softmax attention through .*AttentionInterface"),
        ("bloom", r"BloomModel .* in layers \[0, 1, 2\] no token sees the later ones"),
        ("stablelm", r"StableLmModel .* layers \[0, 1, 2\] hide later tokens .*`attn_implementation='eager'`"),
    ],
)
def test_what_cannot_read_both_ways_is_refused_and_left_as_it_is(family, reason):
    model = decoder(family, "eager" if family == "bloom" else "sdpa")
    before = model.config.to_dict()
    with pytest.raises(ValueError, match=rf"{reason}.*Use an encoder \(BERT, .*or another decoder \(Llama"):
        teacher_of(model)
    assert model.config.to_dict() == before


def test_stablelm_reads_both_ways_with_eager_attention():
    assert teacher_of(decoder("stablelm", "eager")).network.is_recordable


def test_the_probe_sees_a_weight_that_the_result_rounds_away():
    """Trained models give later tokens weights that bfloat16 loses beside those of the first token."""

    def attend(query, key, value, mask):
        return ((query @ key.transpose(2, 3)).masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2), None

    query, value = torch.ones(1, 1, 4, 1).bfloat16(), torch.full((1, 1, 4, 1), 100.0).bfloat16()
    key = torch.tensor([0.0, 0, 0, -12]).view(1, 1, 4, 1).bfloat16()  # the last token's weight is 2e-6
    for mask, readers in ((torch.ones(4, 4), {0}), (torch.ones(4, 4).tril(), set())):
        probe = AttentionProbe(decoder())
        result = probe.intercept(0, attend, query, key, value, mask.bool())[0]
        assert probe.last_token_readers == readers and (result == 100).all()


def test_models_that_are_no_single_stack_of_text_are_refused():
    tokenizer = tokenizer_of("bytes")
    tiny = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    t5 = AutoConfig.for_model("t5", d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1, vocab_size=900)
    with pytest.raises(ValueError, match=r"T5Model is an encoder-decoder"):
        InteractionTeacher(AutoModel.from_config(t5), tokenizer)
    text = {**tiny, "vocab_size": 900, "num_key_value_heads": 1, "head_dim": 8}
    gemma = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**tiny, "image_size": 28, "patch_size": 14}
    )
    with pytest.raises(ValueError, match=r"Gemma3Model reads images or sound .*`model.language_model`"):
        InteractionTeacher(AutoModel.from_config(gemma), tokenizer)
    mamba = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=1, vocab_size=900)
    with pytest.raises(ValueError, match=r"MambaModel cannot be a teacher: .* returns no weights"):
        InteractionTeacher(AutoModel.from_config(mamba), tokenizer_of("wordpiece"))
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build_student(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"Merge the adapter first: `model.merge_and_unload\(\)`"):
        InteractionTeacher(adapted, tokenizer)
