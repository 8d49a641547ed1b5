"""`RewardEnsemble`: several reward models as one scorer, cautious where they disagree."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from ..utils.fields import require_positive
from ..utils.privacy import public_name
from .aggregation import Aggregation, EnsembleFile, is_address, is_ensemble
from .formatting import Text
from .member_rows import MemberFormatter, text_key
from .members import check_members, load_members, read_members, refuse_repeated
from .remote import RemoteRewardScorer
from .scorer import RewardScorer
from .text_scorer import TextScorer

logger = logging.getLogger(__name__)


class RewardEnsemble(TextScorer):
    """Several reward models as one: `ensemble(prompts, completions) -> list[float]`.

    It goes wherever a `RewardScorer` goes: best-of-n, a TRL reward function, a scorer of RAIN, `run_benchmark`,
    `diagnose`. Its saved folder is a `model` or `reward_model` of the commands. Members may have different tokenizers
    and chat templates: each formats the texts as in its own training, and a warning says so.

    Source: Coste et al., arXiv 2310.02743. Each model has its own unit of reward: `calibrate` measures the center and
    the scale of each. Without it rewards are combined as they are.

    Args:
        members: two or more scorers, local or remote.
        aggregation, uncertainty_weight, centers, scales: see `Aggregation`.
        batch_size: rows that each member reads together; by default the smallest of the members' own.
        max_length: completions whose text is longer, for any member, are an error; by default the smallest of the
            members' own.

    Attributes:
        member_names: of each member.
        rule: the `Aggregation`.
        is_same_text: whether all members read the same tokens.
        last_token_counts: tokens processed per completion in the last call, over all members.
        last_forward_passes: forward passes and requests of the last call, over all members.

    Raises:
        ValueError: fewer than two members, one of them twice, or an ensemble among them; settings out of range; a
            member that gives no finite reward; what a member's own scorer refuses.
        TypeError: a member that is not a scorer.
    """

    def __init__(
        self,
        members: Sequence[TextScorer],
        *,
        aggregation: str = "mean",
        uncertainty_weight: float | None = None,
        centers: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
    ):
        rule = Aggregation(aggregation, uncertainty_weight, centers, scales)
        self.members = list(members)
        check_members(self.members)
        rule.check_members(len(self.members))
        self.rule = rule
        self.is_same_text = len({text_key(member) for member in self.members}) == 1
        formatter = self.members[0].formatter if self.is_same_text else MemberFormatter(self.members)
        limits = [each.max_length for each in self.members if each.max_length is not None]
        super().__init__(
            self.members[0].tokenizer if self.is_same_text else None,
            min(each.batch_size for each in self.members) if batch_size is None else batch_size,
            min(limits, default=None) if max_length is None else max_length,
            formatter,
        )
        self.member_names = [each.__name__ for each in self.members]
        self.__name__ = f"{aggregation}_of_{len(self.members)}"
        self._sources: tuple[str, ...] | None = None  # what a file can name the members by
        self._has_warned_of_units = False
        if not self.is_same_text:
            logger.warning(
                "The members read different tokens (another tokenizer, chat template or server). Each formats texts "
                "as in its own training; `interdistill serve` and `diagnose` need members that read the same."
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike | Sequence[str | os.PathLike | TextScorer],
        *,
        aggregation: str | None = None,
        uncertainty_weight: float | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        **model_kwargs: Any,
    ) -> RewardEnsemble:
        """Load an ensemble from its folder, or its members from theirs.

        Plain LoRA adapters of one base model, with the same tokenizer, share that model: it is loaded once, and a
        forward pass reads each text once for each of them (PEFT's `adapter_names`).

        Args:
            source: a folder that `save_pretrained` wrote, or the members: folders or Hub names of reward models and
                adapters, addresses of `interdistill serve`, or scorers.
            aggregation, uncertainty_weight: by default the folder's; for a list of members the mean. Another
                aggregation than the folder's has the default weight.
            batch_size, max_length: see the class; models that are loaded read 16 rows together.
            **model_kwargs: of `from_pretrained` (`dtype`, `attn_implementation`, ...), for every local member.

        Raises:
            ValueError, FileNotFoundError: see the class, `RewardScorer.from_pretrained` and `EnsembleFile.read`.
        """
        rule = Aggregation()
        if isinstance(source, str | os.PathLike):
            if not is_ensemble(source):
                raise FileNotFoundError(
                    f"{public_name(str(source))} is not the folder of an ensemble (it has no reward_ensemble.json). "
                    "Give "
                    "one that has, or a list of two or more reward models."
                )
            file = EnsembleFile.read(source)
            source, rule = file.members, file.rule
        if aggregation is not None and aggregation != rule.aggregation:
            rule = replace(rule, aggregation=aggregation, uncertainty_weight=uncertainty_weight)
        elif uncertainty_weight is not None:
            rule = replace(rule, uncertainty_weight=uncertainty_weight)
        names: list[Any] = [str(each) if isinstance(each, str | os.PathLike) else each for each in source]
        refuse_repeated(names)
        rule.check_members(len(names))
        local = [each for each in names if isinstance(each, str) and not is_address(each)]
        loaded = dict(
            zip(
                local,
                load_members(local, batch_size, model_kwargs),
                strict=True,
            )
        )
        given = [loaded.get(each, each) if isinstance(each, str) else each for each in names]
        members = [RemoteRewardScorer(each) if isinstance(each, str) else each for each in given]
        ensemble = cls(members, **asdict(rule), batch_size=batch_size, max_length=max_length)
        ensemble.member_names = [public_name(each) if isinstance(each, str) else each.__name__ for each in names]
        if all(isinstance(each, str) for each in names):
            ensemble._sources = tuple(names)
        return ensemble

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `reward_ensemble.json`: the names of the members and the rule. The members stay where they are.

        Raises:
            ValueError: members that were not given by name, so that no file can name them.
        """
        if self._sources is None:
            raise ValueError(
                "The ensemble was made of scorers, which have no names that a file could hold. Save the members, and "
                "make it by `RewardEnsemble.from_pretrained([...])` with their folders, Hub names or addresses."
            )
        EnsembleFile(self._sources, self.rule).write(folder)

    def calibrate(self, prompts: Iterable[Text | None], completions: Iterable[Text], **kwargs: Any) -> RewardEnsemble:
        """Set center and scale of each member: mean and standard deviation of its rewards of some texts.

        Args:
            prompts, completions, **kwargs: as in a call; two texts or more, like those to be scored.

        Returns:
            The ensemble itself, whose rewards are standardized from now on.

        Raises:
            ValueError: fewer than two texts, or a member that gives all of them the same reward.
        """
        rewards = self._read(self.encode_rows(prompts, completions, **kwargs))
        if rewards.shape[1] < 2:
            raise ValueError(f"A scale needs the rewards of two texts or more, but {rewards.shape[1]} was given.")
        scales = rewards.std(1, correction=0)
        for name, scale in zip(self.member_names, scales.tolist(), strict=True):
            if scale == 0:
                raise ValueError(
                    f"The member {name} gives all {rewards.shape[1]} texts the same reward, so it has no scale. Give "
                    "texts that differ more, or leave the member out."
                )
        self.rule = replace(self.rule, centers=tuple(rewards.mean(1).tolist()), scales=tuple(scales.tolist()))
        return self

    @property
    def batch_size(self) -> int:
        """Rows that each member reads together; setting it sets that of every member."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        require_positive("batch_size", value)
        self._batch_size = value
        for member in self.members:
            member.batch_size = value

    def to(self, device) -> RewardEnsemble:
        """Move the local members."""
        for member in filter(lambda each: isinstance(each, RewardScorer), self.members):
            member.to(device)  # type: ignore[attr-defined]
        return self

    def member_rewards(
        self,
        rows: Sequence[Any],
        *,
        is_progress_shown: bool = False,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> torch.Tensor:
        """Rewards of each member, standardized if the ensemble is calibrated.

        Args:
            rows: as `encode_rows` makes them. positions: see `RewardScorer.score_ids`; of local members alone.

        Returns:
            `(members, rows)`, float32.
        """
        return self.rule.standardize(self._read(rows, is_progress_shown, positions))

    def score_ids(
        self,
        rows: Sequence[Any],
        *,
        is_progress_shown: bool = False,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> list[float]:
        """One reward per row, combined from `member_rewards`."""
        self._warn_of_units()
        return self.rule(self.member_rewards(rows, is_progress_shown=is_progress_shown, positions=positions)).tolist()

    @property
    def device(self) -> torch.device:
        """Of the first member."""
        return self.reading_members("A device")[0].device

    @property
    def context_length(self) -> int | None:
        """Tokens that every member can read at most; `None` if no local member has a limit."""
        limits = (each.context_length for each in self.members if isinstance(each, RewardScorer))
        return min(filter(None, limits), default=None)

    @property
    def vocabulary_size(self) -> int:
        """Token ids that every member knows are below it."""
        return min(member.vocabulary_size for member in self.reading_members("A row of token ids"))

    @property
    def padding_side(self) -> str:
        """See `RewardScorer.padding_side`: measured for every member; the answer is that of the first."""
        first, *_ = [member.padding_side for member in self.reading_members("A batch of token ids")]
        return first

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `RewardScorer.batches`; by the first member, as each makes its own batches of them."""
        return self.reading_members("A batch of token ids")[0].batches(lengths)

    def check_length(self, length: int) -> None:
        """Raise `ValueError` for a row of so many tokens that the ensemble or a member would refuse."""
        self._refuse_over_long(length)
        for member in self.reading_members("A row of token ids"):
            member.check_length(length)

    def reading_members(self, purpose: str) -> list[RewardScorer]:
        """The members, if all are here and read the same tokens.

        Raises:
            ValueError: they are not; `purpose` is what needs it.
        """
        local = [member for member in self.members if isinstance(member, RewardScorer)]
        if len(local) < len(self.members) or not self.is_same_text:
            raise ValueError(
                f"{purpose} needs members that are loaded here and read the same tokens, but those of this ensemble "
                f"({', '.join(self.member_names)}) do not. Give members with one tokenizer and chat template, or take "
                "each by itself."
            )
        return local

    def _read(self, rows: Sequence[Any], is_progress_shown: bool = False, positions=None) -> torch.Tensor:
        """Rewards `(members, rows)` as the members give them."""
        rewards, self.last_token_counts, self.last_forward_passes = read_members(
            self.members, rows, is_progress_shown=is_progress_shown, positions=positions
        )
        broken = (~rewards.isfinite()).nonzero().tolist()
        if broken:
            member, row = broken[0]
            raise ValueError(
                f"The member {self.member_names[member]} gives row {row} the reward {float(rewards[member, row])}, "
                "but each must be a finite number. Leave a broken model out, or load it in another dtype."
            )
        return rewards

    def _warn_of_units(self) -> None:
        if self.rule.centers is None and not self._has_warned_of_units:
            self._has_warned_of_units = True
            logger.warning(
                "The rewards of the members are combined as they are, though each model has its own zero and unit. "
                "`calibrate(prompts, completions)` standardizes them (warned once)."
            )
