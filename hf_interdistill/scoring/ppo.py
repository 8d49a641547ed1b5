"""A reward model in the form that TRL's `PPOTrainer` needs: the rewards that PPO sees are those of `RewardScorer`.

PPO reads token ids of the policy's tokenizer, takes the reward at the last token before the padding, and looks for
`base_model_prefix` and `.score` (trl#3595). Without this module it would score a cut-off answer without EOS, and a
conversation without the end that its chat template writes. With a policy that pads with EOS it would score one token
too early. Here the ids are turned into text again and scored like any other text.

`PPOTrainer` exists in TRL up to 1.12, the extra `ppo`.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from types import SimpleNamespace

import torch
from torch import nn

from .rendered_answers import PROBE, apply_template, generation_prompt_of, render_answer
from .scorer import RewardScorer


def ppo_reward_model(reward_model: str | RewardScorer, tokenizer) -> PPORewardModel:
    """The `reward_model` of `trl.experimental.ppo.PPOTrainer`.

    Args:
        reward_model: scorer, or folder or Hub name of a reward model or adapter.
        tokenizer: the policy's, which is PPO's `processing_class`. It may differ from the reward model's.

    Raises:
        ImportError: this TRL has no PPO.
        ValueError: no trained score head; padding with EOS, or on the right; a chat template other than the reward
            model's, or one in which the answer cannot be told from the prompt.
    """
    require_ppo()
    return PPORewardModel(_as_scorer(reward_model), tokenizer)


def ppo_value_model(reward_model: str | RewardScorer, tokenizer) -> nn.Module:
    """The `value_model` of `trl.experimental.ppo.PPOTrainer`, started from a reward model.

    It has weights of its own, which PPO trains: all of them, or an adapter's LoRA weights and score head alone.

    Args:
        reward_model: scorer, or folder or Hub name of a reward model or adapter.
        tokenizer: the policy's. The value model reads its token ids, so they must mean the same to the reward model
            (but for the padding token, which PPO takes out).

    Raises:
        ImportError: this TRL has no PPO.
        ValueError: no trained score head; another vocabulary; an encoder; a head that is not called `score`.
    """
    require_ppo()
    scorer = _as_scorer(reward_model)
    read = {token: number for token, number in tokenizer.get_vocab().items() if token != tokenizer.pad_token}
    if not read.items() <= scorer.tokenizer.get_vocab().items():
        raise ValueError(
            f"The policy's tokenizer ({len(tokenizer)} tokens) is not the reward model's ({len(scorer.tokenizer)} "
            "tokens), but PPO's value model reads the policy's token ids. Start the value model from a model with the "
            "policy's tokenizer; the reward model itself may have another (`ppo_reward_model`)."
        )
    model = scorer.model if isinstance(reward_model, str) else copy.deepcopy(scorer.model)
    if not scorer.is_causal:
        raise ValueError(
            f"{type(model).__name__} reads in both directions, so its values would know the rest of the answer. PPO "
            "needs a value model with causal attention."
        )
    if hasattr(model, "peft_config"):
        model.set_adapter(model.active_adapter)  # loaded frozen; from here on LoRA weights and head are trained
        model = model.get_base_model()  # the classifier with the adapter in it, not hidden behind PeftModel's names
    else:
        model.requires_grad_(True)
    if not hasattr(model, "score") or not hasattr(model, model.base_model_prefix):
        raise ValueError(
            f"{type(model).__name__} has no `score` head on `{model.base_model_prefix}`, which is where PPO reads its "
            "values. Start from a decoder's `*ForSequenceClassification`."
        )
    return model


class PPORewardModel(nn.Module):
    """A `RewardScorer` behind the names that PPO looks for; made by `ppo_reward_model`.

    PPO calls `getattr(model, model.base_model_prefix)` with token ids, then `score` on its last hidden state, and
    reads the result at the answer's last token. The "hidden state" here is the reward itself, at every position.
    """

    base_model_prefix = "read"

    def __init__(self, scorer: RewardScorer, tokenizer):
        super().__init__()
        _check_padding(tokenizer)
        self.model, self.config = scorer.model, scorer.model.config  # a submodule: PPOTrainer moves it to its device
        self.score = nn.Identity()
        self._scorer, self._tokenizer = scorer, tokenizer
        self._generation_prompt = _generation_prompt(tokenizer, scorer.tokenizer)

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs) -> SimpleNamespace:
        """Rewards of token ids `(batch, length)`, as hidden states `(batch, length, 1)`."""
        mask = _before_padding(attention_mask.bool())
        rows = [self.encode(ids[kept].tolist()) for ids, kept in zip(input_ids, mask, strict=True)]
        rewards = torch.tensor(self._scorer.score_ids(rows), device=input_ids.device)
        return SimpleNamespace(hidden_states=(rewards[:, None, None].expand(*input_ids.shape, 1),))

    def encode(self, ids: list[int]) -> list[int]:
        """What the reward model reads of a prompt and answer in the policy's tokens, without padding."""
        policy, reward = self._tokenizer, self._scorer.tokenizer
        ids = ids[:-1] if ids[-1:] == [policy.eos_token_id] else ids
        text = _decode(policy, ids)
        if self._generation_prompt is not None and self._generation_prompt in text:
            prompt, _, answer = text.rpartition(self._generation_prompt)
            return reward(prompt + render_answer(reward, answer), add_special_tokens=False)["input_ids"]
        if ids[:1] == [policy.bos_token_id]:  # the reward model's tokenizer adds its own
            text = _decode(policy, ids[1:])
        return self._scorer.formatter.encode(None, text)


def _as_scorer(reward_model: str | RewardScorer) -> RewardScorer:
    if isinstance(reward_model, RewardScorer):
        return reward_model
    if not isinstance(reward_model, str | os.PathLike):
        raise TypeError(
            f"The reward model is {type(reward_model).__name__}, but PPO reads it as one model: a RewardScorer, or "
            "the name of one. GRPO and RLOO take a RewardEnsemble or a server as a reward function."
        )
    return RewardScorer.from_pretrained(reward_model)


def require_ppo() -> None:
    """Raise `ImportError`, naming the extra to install, where TRL has no `PPOTrainer`."""
    import trl

    if importlib.util.find_spec("trl.experimental.ppo") is None:
        raise ImportError(
            f"TRL {trl.__version__} has no PPOTrainer; it left TRL with 1.13. Install the extra that holds the last "
            "versions with it, in a clone of this package: pip install -e '.[ppo]' (or train with GRPO or RLOO)."
        )


def _before_padding(mask: torch.Tensor) -> torch.Tensor:
    """The tokens that PPO counts: from the first real one to the first padding after it, `(batch, length)`."""
    is_started = mask.cumsum(1) > 0
    return mask & ((is_started & ~mask).cumsum(1) == 0)


def _decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _check_padding(tokenizer) -> None:
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"The policy's tokenizer has the padding token {tokenizer.pad_token!r} and the EOS token "
            f"{tokenizer.eos_token!r}, but PPO removes every padding token from its texts, so it needs one that means "
            "nothing else. Set one: `tokenizer.add_special_tokens({'pad_token': '[PAD]'})`."
        )
    if tokenizer.padding_side != "left":
        raise ValueError(
            f"The policy's tokenizer pads on the {tokenizer.padding_side}, so PPO would put the answers behind the "
            "padding of their prompts. Set `tokenizer.padding_side = 'left'`."
        )


def _generation_prompt(policy, reward) -> str | None:
    """What the chat template writes before an answer, which marks a conversation; `None` without a template.

    Raises:
        ValueError: the reward model was trained with another template, or answers cannot be told from prompts.
    """
    if not policy.chat_template:
        return None
    plain = "For prompts of plain text set `tokenizer.chat_template = None`."
    if policy.chat_template != reward.chat_template:
        raise ValueError(
            "The policy's tokenizer has another chat template than the reward model's, so a rendered conversation has "
            "a format that the reward model was not trained on. Train the policy with the reward model's: "
            f"`tokenizer.chat_template = reward_tokenizer.chat_template`. {plain}"
        )
    prompt = generation_prompt_of(policy)
    answer = [{"role": "assistant", "content": "the answer"}]
    closed = apply_template(policy, PROBE)
    if prompt is None or apply_template(reward, PROBE + answer) != closed + render_answer(reward, "the answer"):
        raise ValueError(
            "With this chat template the answer cannot be told from the prompt in PPO's token ids: it writes no "
            "generation prompt (`add_generation_prompt=True` changes nothing), or rewrites earlier messages when an "
            f"answer follows. Use another template, or train with GRPO or RLOO, which keep messages. {plain}"
        )
    return prompt
