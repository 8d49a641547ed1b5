"""The keys that name a dataset, shared by the training commands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """Which preference data to use; the keys are those of TRL's scripts.

    Args:
        dataset_name: Hub name, folder or file (see `data.load_preferences`).
        dataset_config: configuration of a Hub dataset.
        dataset_train_split, dataset_test_split: names of the splits.
        dataset_streaming: stream instead of loading (needs `max_steps`).
    """

    dataset_name: str = field(metadata={"help": "Preference dataset: Hub name, folder or file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Stream the dataset (set `max_steps`)."})

    def load(self):
        """All splits."""
        from ..utils.data import load_preferences

        return load_preferences(self.dataset_name, self.dataset_config, self.dataset_streaming)
