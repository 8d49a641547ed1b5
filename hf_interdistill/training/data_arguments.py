"""The keys that name a dataset, shared by the training commands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """Which preference data to use; the keys are those of TRL's scripts.

    Args:
        dataset_name: Hub name, folder or file (see `data.load_preferences`).
        dataset_config: configuration of a Hub dataset.
        dataset_train_split: name of the split to train on.
        dataset_test_split: name of the split to evaluate on, which must be there; by default `test`, if there is one.
        dataset_streaming: stream instead of loading (needs `max_steps`).
    """

    dataset_name: str = field(metadata={"help": "Preference dataset: Hub name, folder or file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; default: test, if there is one."}
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "Stream the dataset (set `max_steps`)."})

    def __post_init__(self):
        self.is_test_split_given = self.dataset_test_split is not None
        self.dataset_test_split = self.test_split

    @property
    def test_split(self) -> str:
        """The name of the split to evaluate on."""
        return "test" if self.dataset_test_split is None else self.dataset_test_split

    def test_rows(self, splits):
        """The rows to evaluate on; `None` if no split is named and there is no `test`.

        Args:
            splits: of `load`.

        Raises:
            ValueError: the split that is named is not there.
        """
        from ..utils.data import get_split

        if not self.is_test_split_given and self.test_split not in splits:
            return None
        return get_split(splits, self.test_split, self.dataset_name)

    def load(self):
        """All splits."""
        from ..utils.data import load_preferences

        return load_preferences(self.dataset_name, self.dataset_config, self.dataset_streaming)
