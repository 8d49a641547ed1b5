"""The part of a model card that shows how to load the model; a test runs its code."""

from __future__ import annotations

import re

LOADING = "<!-- loading: "
_MARKED = re.compile(r"<!-- loading: (messages|text) -->.*?<!-- /loading -->", re.DOTALL)

_SECTION = """<!-- loading: {kind} -->
## How to load it

```python
import torch
{imports}

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {model}
{inputs}
with torch.no_grad():
    reward = model(**inputs).logits[0, 0].item()
```
{notes}
<!-- /loading -->"""

_MESSAGES = """
conversation = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "It is Paris."},
]
inputs = tokenizer.apply_chat_template(conversation, return_dict=True, return_tensors="pt")"""

_TEXT = """
prompt, completion = "What is the capital of France?", " It is Paris."
inputs = tokenizer(prompt + completion + tokenizer.eos_token, return_tensors="pt")"""

_PIPELINE = """
The config says that this is a regression (`problem_type`), so that servers return the raw reward:

| what | how | the reward |
| --- | --- | --- |
| transformers | `pipeline("text-classification", model="{name}")(text, add_special_tokens={adds})` | `[0]["score"]` |
| vLLM | `--runner pooling --pooler-config '{{"use_activation": false}}'`, `POST /classify` | `data[0].probs[0]` |
| SGLang | `--is-embedding`, `POST /classify`; `/v1/classify` answers 1 to one score (softmax) | `embedding[0]` |
| text-embeddings-inference | encoders only: `POST /predict` with `"raw_scores": true` | `score` |
| `hf_interdistill` | `interdistill serve --model {name}`, `POST /score` | `rewards[0]` |

`text` is {text}."""
_TEXT_OF = {
    True: "the conversation after the chat template (`apply_chat_template(conversation, tokenize=False)`)",
    False: "prompt, completion and EOS, as above",
}

_ADAPTER = """
This is a LoRA adapter with its score head: PEFT loads the base model and adds both to it. For batches, set
`model.config.pad_token_id = tokenizer.pad_token_id` if the base model has none."""


def loading_section(name: str, *, is_adapter: bool, is_conversational: bool) -> str:
    """Markdown with code that loads the model with plain transformers (or PEFT) and scores one answer.

    Args:
        name: repository or folder to load from.
        is_adapter: whether it is a PEFT adapter.
        is_conversational: whether it was trained on messages; otherwise it reads prompt, completion and EOS.
    """
    if is_adapter:
        imports = "from peft import AutoPeftModelForSequenceClassification\nfrom transformers import AutoTokenizer"
        model = f'AutoPeftModelForSequenceClassification.from_pretrained(\n    "{name}", num_labels=1, '
        model += "dtype=torch.float32\n).eval()"
    else:
        imports = "from transformers import AutoModelForSequenceClassification, AutoTokenizer"
        model = f'AutoModelForSequenceClassification.from_pretrained("{name}", dtype=torch.float32)'
    return _SECTION.format(
        kind="messages" if is_conversational else "text",
        imports=imports,
        name=name,
        model=model,
        inputs=_MESSAGES if is_conversational else _TEXT,
        notes=_ADAPTER
        if is_adapter
        else _PIPELINE.format(name=name, adds=not is_conversational, text=_TEXT_OF[is_conversational]),
    )


def trained_on_messages(card_text: str) -> bool | None:
    """Whether a card says that its model reads messages; `None` if it has no such section."""
    found = _MARKED.search(card_text)
    return None if found is None else found[1] == "messages"


def with_loading_section(card_text: str, section: str) -> str:
    """The card's text with this section in place of the one it has, or at its end."""
    if _MARKED.search(card_text):
        return _MARKED.sub(lambda _: section, card_text, count=1)
    return f"{card_text.rstrip()}\n\n{section}\n"


def with_section(card_text: str, name: str, section: str, *, before: str | None = None) -> str:
    """The card's text with a section between marks of this name, in place of the one it has or at its end.

    Args:
        before: a text that a new section is put before, if the card has it.
    """
    marked = f"<!-- {name} -->\n{section.strip()}\n<!-- /{name} -->"
    pattern = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    if pattern.search(card_text):
        return pattern.sub(lambda _: marked, card_text, count=1)
    if before is not None and before in card_text:
        return card_text.replace(before, f"{marked}\n\n{before}", 1)
    return f"{card_text.rstrip()}\n\n{marked}\n"
