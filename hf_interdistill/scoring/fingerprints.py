"""A short text that differs where a tokenizer makes other rows of tokens."""

from __future__ import annotations

import hashlib
import json


def digest_of_tokenizer(tokenizer) -> str:
    """Of the vocabulary, the special tokens and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    content = json.dumps([vocabulary, special, getattr(tokenizer, "chat_template", None)], sort_keys=True)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
