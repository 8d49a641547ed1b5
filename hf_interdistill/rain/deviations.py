"""Where RAIN departs from the released code, and why."""

from __future__ import annotations

DEVIATIONS: dict[str, str] = {
    "eos": "A token set that ends a text (EOS, stop string, new turn) ends the generation. The released HH script "
    "never stops at EOS.",
    "labels": "The token ids of the judge's labels come from the tokenizer. Labels that are not distinct single "
    "tokens are refused. The released code contains LLaMA's token ids.",
    "lone_child": "A lone child has variance 0, so its parent may be widened. In the released code the variance of "
    "one embedding is NaN, and the parent is never widened.",
    "empty_answer": "The root is expanded before the first iteration, so no empty answer is judged. The released "
    "code spends its first iteration on one.",
    "lazy_expansion": "A leaf is expanded when it is selected again, not at its first visit. The search is the same, "
    "token for token, but candidates that are never visited are never drawn.",
    "similarity_off": "Without `similarity_model` there is neither sibling credit nor widening, because both need an "
    "encoder. A plain `RainConfig` has none; the presets use the encoder of the published runs.",
    "lazy_embeddings": "Texts are embedded when a sibling is visited, in one call per backup. The mean is the same.",
    "speculation": "Rollouts and expansions that the search will probably need next are decoded in the same forward "
    "passes as those that it needs now (`num_speculative`). A model that is its own judge scores such rollouts in "
    "calls that are necessary anyway. The search is the same, token for token, and needs fewer passes.",
    "duplicates": "Duplicate candidates are dropped and not drawn again. The released attack script draws again.",
    "random_numbers": "Every draw has its own counter-based random stream (seed, prompt, prefix), so results do not "
    "depend on the batch. The released code uses one global generator.",
    "candidate_processors": "Logits processors of the generation config are applied to rollouts, and to candidates "
    "before the expansion's temperature and top-k. The released code has none. Rollouts are always sampled, whatever "
    "`do_sample` says.",
    "turn_tokens": "The tokens that start a new turn stay in the output, as stop strings do in `generate`. The judge "
    "does not see them.",
}
