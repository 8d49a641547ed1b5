"""The teacher: an encoder, or a decoder without its causal mask, that reads prompt and both responses of a pair."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel, set_seed

from ...training.checkpoints import as_checkpoint_error
from ...utils.atomic_io import require_writable
from ...utils.context_length import context_length
from ...utils.dtypes import check_dtype
from ...utils.fields import require_positive
from ...utils.privacy import public_name
from ...utils.sources import load_tokenizer, loading
from ...utils.whole_models import hub_options, load_with_report, model_options, refuse_options_of_loading
from ..attention.recorder import resolve_layers
from ..data.orders import select_order
from ..data.pairs import read_preferences
from ..data.preference_tokenizer import tokenize_without_units
from ..data.teacher_inputs import PairLayout, SequenceFormat
from .config import InteractionTeacherConfig
from .files import load_head, load_head_and_state, require_same_teacher, require_whole_encoder, save_teacher
from .map_recording import record_late_interaction, record_single_rows
from .pair_encoder import PairEncoder, resolve_interaction_layers
from .reading import base_of, has_recordable_attention, is_decoder, lift_causal_mask
from .scoring import pair_margins
from .stage_records import encoder_digest
from .training import chance_warning, held_out_metrics, split_preferences, train_network

logger = logging.getLogger(__name__)

_LONGEST_ROW = 100_000  # tokens, for an encoder without a limit
_SHORTEST_ROW = 16


class InteractionTeacher:
    """Bidirectional pair encoder whose token-interaction map a reward model learns to simulate.

    Source: the role is that of arXiv 2508.02618; the score at the separator after each response is ours. A decoder
    that reads both ways is LLM2Vec's (arXiv 2404.05961), without its masked next token prediction.

    Args:
        model: an encoder of transformers (BERT, RoBERTa, MPNet, ModernBERT, ELECTRA, DeBERTa-v2/v3, ...), or a decoder
            (Llama, Qwen, Mistral, Gemma, ...), with or without its head. The causal mask of a decoder is lifted **in
            place**, by its config: do not generate with this object afterwards. A head is left out.
        tokenizer: its fast tokenizer. A decoder's rows are `<bos> prompt <eos> response <eos>`, where `<eos>` is the
            tokenizer's end token and `<bos>` what it puts before a text, if anything.
        max_length: tokens per row (the prompt and one response; the prompt and both if `interaction_layers` is 0);
            longer rows lose the oldest prompt tokens. By default as many as the encoder can read.
        interaction_layers: number of top layers in which the two responses attend to each other. Below them each is
            read with the prompt alone, as an ordinary reward model reads it. So what is learned on single responses
            applies to pairs too, and there is no reading order. 0: prompt and both responses are one row, all layers
            attend to everything, and the order is random in training. `None`: 1 where the encoder supports it
            (attention through transformers' `AttentionInterface`, `sdpa` or `eager`), else 0.
        metrics: held-out metrics of an earlier `fit`.

    Raises:
        ValueError: a slow tokenizer, or one without padding token or separator; an encoder-decoder, a model that reads
            more than text, or one in which some layer cannot be made to read both ways; `interaction_layers` that it
            does not have or support.

    Relations: `fit` trains it, `InteractionDistillationTrainer(teacher=...)` uses it. It is never published.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer,
        *,
        max_length: int | None = None,
        interaction_layers: int | None = None,
        metrics=None,
    ):
        model = base_of(model)
        self.name = public_name(model.config._name_or_path) or type(model).__name__
        self.metrics: dict[str, Any] | None = metrics
        self.tokenizer = tokenizer
        is_recordable = is_decoder(model) or has_recordable_attention(model)
        self.format = SequenceFormat.from_tokenizer(tokenizer, is_decoder=is_decoder(model))
        if is_decoder(model):
            lift_causal_mask(model)
        self.network = PairEncoder(model, interaction_layers, is_recordable=is_recordable)
        self.max_length = self.check_length(max_length or self._longest_row)
        self._starts: dict[Path, str] = {}  # digest of the encoder at the start of `fit`, by its folder

    @classmethod
    def from_pretrained(
        cls,
        name: str | PreTrainedModel,
        tokenizer=None,
        *,
        max_length: int | None = None,
        interaction_layers: int | None = None,
        **model_kwargs,
    ):
        """Load a saved teacher, any encoder or any causal language model.

        Args:
            name: Hub name or folder (of a model, or of a teacher saved by `save_pretrained`), or a loaded model.
            tokenizer: needed only with a loaded model.
            max_length, interaction_layers: see the class; by default those that a teacher was saved with.
            **model_kwargs: for `AutoModel.from_pretrained`; `revision`, `subfolder` and `token` for all of its files.
                `num_hidden_layers=12` takes the first 12 layers of a larger model.

        Raises:
            FileNotFoundError: there is neither a folder nor a model on the Hub of that name.
            IncompleteModelError: weights are missing or of another shape (but for a pooler, which no teacher uses).
        """
        if not isinstance(name, str | os.PathLike):
            if tokenizer is None:
                raise ValueError("A loaded teacher model has no tokenizer: pass `tokenizer=` too.")
            refuse_options_of_loading(model_kwargs)
            return cls(name, tokenizer, max_length=max_length, interaction_layers=interaction_layers)
        name = str(name)
        options = {"dtype": torch.float32, **model_options("InteractionTeacher.from_pretrained", model_kwargs)}
        check_dtype("dtype", options["dtype"])
        with loading(name, "teacher"):
            model, report = load_with_report(AutoModel, name, **options)
            if tokenizer is None:
                tokenizer = load_tokenizer(name, **hub_options(options))
            saved = load_head_and_state(name, hub_options(options, "trust_remote_code"))
        require_whole_encoder(name, model, report, is_fitted=saved is not None)
        if saved is None:
            return cls(model, tokenizer, max_length=max_length, interaction_layers=interaction_layers)
        head, state = saved
        if interaction_layers is None:
            interaction_layers = state.get("interaction_layers", 0)  # missing in teachers of earlier versions
        teacher = cls(model, tokenizer, max_length=max_length, interaction_layers=interaction_layers)
        load_head(name, teacher.network, head)
        teacher.metrics, teacher.name = state["metrics"], state["name"]
        teacher.max_length = max_length or state["max_length"]
        return teacher

    def save_pretrained(self, folder: str) -> None:
        """Write encoder, tokenizer, score head and metrics; `from_pretrained(folder)` loads them."""
        state = {
            "name": self.name,
            "max_length": self.max_length,
            "interaction_layers": self.interaction_layers,
            "metrics": self.metrics,
        }
        save_teacher(folder, self.network, self.tokenizer, state)

    @property
    def _longest_row(self) -> int:
        return context_length(self.network.encoder, self.tokenizer) or _LONGEST_ROW

    def check_length(self, length: int) -> int:
        """`length`, if it is enough for a pair and at most what the encoder can read; otherwise `ValueError`."""
        if not _SHORTEST_ROW <= length <= self._longest_row:
            raise ValueError(
                f"A teacher input of {length} tokens was asked for (`max_length`, `teacher_max_length`), but "
                f"{self.name} reads at most {self._longest_row}, and a pair needs at least {_SHORTEST_ROW}."
            )
        return length

    @property
    def interaction_layers(self) -> int:
        """Number of top layers in which the responses attend to each other; 0: all of them, in one row."""
        return self.network.interaction_layers

    @interaction_layers.setter
    def interaction_layers(self, value: int) -> None:
        network = self.network
        network.interaction_layers = resolve_interaction_layers(network.encoder, value, network.is_recordable)

    @property
    def layout(self) -> PairLayout:
        """The rows in which it reads a pair."""
        return PairLayout(self.format, self.max_length, has_late_interaction=self.interaction_layers > 0)

    @property
    def is_fitted(self) -> bool:
        """Whether it was trained on preferences (here, or before it was saved)."""
        return self.metrics is not None

    @property
    def num_layers(self) -> int:
        return self.network.encoder.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        return self.network.score.weight.device

    def to(self, device) -> InteractionTeacher:
        self.network.to(device)
        return self

    def freeze(self) -> InteractionTeacher:
        """Evaluation mode, no dropout, no gradients."""
        self.network.eval().requires_grad_(False)
        return self

    def fit(
        self,
        preferences,
        output_dir: str | None = None,
        *,
        args: InteractionTeacherConfig | None = None,
        eval_dataset=None,
        callbacks=None,
        resume_from_checkpoint: bool = False,
    ) -> dict[str, Any]:
        """Train on preferences, evaluate on held-out ones, and freeze.

        Two stages, each with early stopping on the held-out loss: single responses (as an ordinary reward model, but
        bidirectional), then pairs. With late interaction the pairs train only the top layers: the layers below have
        seen the same responses already, and would memorize them. With `interaction_layers=0` each pair is read in both
        orders at each visit, so that no step rewards a position. Source: ours.

        Args:
            preferences: rows of any preference format (a `Dataset` or a list). With `preference_probability` or
                `tie_probability` the response that won is the chosen one, and pairs without a winner are left out. Of
                ranked responses the best and the worst are read.
            output_dir: for checkpoints and the finished teacher; without it nothing is kept.
            args: settings; `output_dir` overrides theirs.
            eval_dataset: held-out rows; without them `args.eval_fraction` of the prompts is held out.
            callbacks: for the `Trainer` of each stage.
            resume_from_checkpoint: resume an earlier call with the same `output_dir`, encoder, rows and settings.

        Returns:
            Held-out metrics: `accuracy` (mean margin of both orders), `accuracy_chosen_first`,
            `accuracy_rejected_first`, `order_agreement` (fraction of pairs with the same decision in both orders),
            `pairs`, `standard_error`, `is_better_than_chance` (the exact 95 % interval of `accuracy` lies above 0.5).
            Also kept as `teacher.metrics`.

        Raises:
            ValueError: the call to resume had other rows, another encoder or other settings.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(output_dir or (args.output_dir if args is not None and args.output_dir else scratch))
            args = args or InteractionTeacherConfig(output_dir=str(folder))
            require_writable("output_dir", str(folder), "the teacher would be lost")
            if args.teacher_max_length is not None:
                self.max_length = self.check_length(args.teacher_max_length)
            if args.interaction_layers is not None:
                self.interaction_layers = args.interaction_layers
            if not resume_from_checkpoint or folder.resolve() not in self._starts:
                self._starts[folder.resolve()] = encoder_digest(self.network.encoder)
            set_seed(args.seed)
            train, held_out = split_preferences(preferences, eval_dataset, args)
            train_network(
                self.network,
                self.tokenizer,
                self.layout,
                (train, held_out),
                args,
                folder=folder,
                encoder=self._starts[folder.resolve()],
                callbacks=callbacks,
                is_resumed=resume_from_checkpoint,
            )
            self.metrics = held_out_metrics(self.score_pairs(held_out, batch_size=args.per_device_eval_batch_size))
            self.freeze()
            if folder != Path(scratch) and args.should_save:
                with as_checkpoint_error(f"The teacher is not saved in {folder}", lambda: "Its stages are kept"):
                    self.save_pretrained(str(folder))
                require_same_teacher(self, type(self).from_pretrained(str(folder)), held_out[:2])
        if not self.metrics["is_better_than_chance"]:
            logger.warning(chance_warning(self.name, self.metrics))
        return self.metrics

    @torch.no_grad()
    def forward(self, batch: dict[str, torch.Tensor], order: torch.Tensor, layers: Sequence[int], units: int):
        """Margins and maps of a batch of pairs.

        Args:
            batch: two rows per pair, `(pairs, 2, ...)`, as `AlignmentCollator` makes them.
            order: `(pairs,)` which response is read first, 0 chosen, 1 rejected; ignored with late interaction.
            layers: numbers of the layers to map, negative from the end.
            units: number of units to map onto (those of the widest pair).

        Returns:
            reward margins `(pairs,)`, chosen minus rejected, and one source of map rows per layer
            (`map_sources.MapSource`).
        """
        layers = self.check_layers(layers)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        if self.interaction_layers:
            return record_late_interaction(self.network, batch, layers, units, self.max_length)
        order = order.to(self.device)
        rewards, sources = record_single_rows(self.network, select_order(batch, order), layers, units, self.max_length)
        return (rewards[:, 0] - rewards[:, 1]) * (1 - 2 * order), sources

    def check_layers(self, layers: Sequence[int]) -> list[int]:
        """The layers counted from 0; `ValueError` for one that does not exist or reads each response alone."""
        layers = resolve_layers(layers, self.num_layers, "teacher_layers")
        first = self.network.first_cross_layer
        if self.interaction_layers and min(layers) < first:
            raise ValueError(
                f"Teacher layer {min(layers)} reads each response alone: in this teacher the responses attend to each "
                f"other only in layers {first} to {self.num_layers - 1} "
                f"(`interaction_layers={self.interaction_layers}`). Set `teacher_layers` to one of those, or fit a "
                "teacher with more `interaction_layers` (0: all)."
            )
        return layers

    def score_pairs(
        self, preferences: Iterable, *, batch_size: int = 16, is_progress_shown: bool = True
    ) -> torch.Tensor:
        """Reward margins, chosen minus rejected, in each reading order (equal with late interaction).

        Args:
            preferences: rows of any preference format.

        Raises:
            ValueError: a row that is not a preference (the message has its number); no rows.

        Returns:
            `(pairs, 2)` float32: margin with the chosen response read first, and with the rejected one read first.
            Average the two to score a pair.
        """
        require_positive("batch_size", batch_size)
        items = read_preferences(preferences, "preferences")
        pairs = [tokenize_without_units(self.tokenizer, item) for item in items]
        return pair_margins(
            self.network, self.layout, pairs, batch_size=batch_size, is_progress_shown=is_progress_shown
        )

    def judge(self, preferences: Iterable, **kwargs) -> torch.Tensor:
        """Deprecated name of `score_pairs`."""
        message = "`InteractionTeacher.judge` is now `score_pairs`; the old name will be removed in the next version."
        warnings.warn(message, FutureWarning, stacklevel=2)
        return self.score_pairs(preferences, **kwargs)
