"""What this package relies on in TRL and transformers; a failure here names what moved."""

from __future__ import annotations

import inspect

import pytest
import transformers
import trl
from trl import RewardConfig, RewardTrainer

TOLD = f"trl {trl.__version__}, transformers {transformers.__version__}"


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("_set_signature_columns_if_needed", ["self"]),
        ("create_model_card", ["self", "model_name", "dataset_name", "tags"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("init_hf_repo", ["self", "token"]),
        ("push_to_hub", ["self", "commit_message", "blocking", "token", "revision", "kwargs"]),
        ("_push_from_checkpoint", ["self", "checkpoint_folder"]),
        ("_finish_current_push", ["self"]),
    ],
)
def test_hooks_of_reward_trainer(method, parameters):
    assert hasattr(RewardTrainer, method), f"RewardTrainer.{method} is gone ({TOLD})"
    found = list(inspect.signature(getattr(RewardTrainer, method)).parameters)
    found = [name for name in found if name != "private"]  # later versions have it; ours takes it anyway
    assert found == parameters, f"RewardTrainer.{method} now takes {found} ({TOLD})"


def test_first_parameters_of_reward_trainer():
    found = list(inspect.signature(RewardTrainer.__init__).parameters)[:5]
    assert found == ["self", "model", "args", "data_collator", "train_dataset"], f"now {found} ({TOLD})"


def test_hooks_are_called_while_the_dataset_is_prepared():
    source = inspect.getsource(RewardTrainer._prepare_dataset)
    assert '"chosen_ids" in column_names' in source, f"tokenized datasets are told by other columns ({TOLD})"
    assert "_prepare_dataset" in inspect.getsource(RewardTrainer.__init__), f"datasets are prepared elsewhere ({TOLD})"
    assert "self._metrics[mode]" in inspect.getsource(RewardTrainer.compute_loss), f"metrics moved ({TOLD})"


def test_config_fields():
    fields = RewardConfig.__dataclass_fields__
    for name in ("max_length", "gradient_checkpointing", "gradient_checkpointing_kwargs", "dataset_num_proc"):
        assert name in fields, f"RewardConfig.{name} is gone ({TOLD})"


def test_attention_interface_takes_functions_by_name():
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert isinstance(ALL_ATTENTION_FUNCTIONS, AttentionInterface)
    assert "sdpa" in AttentionInterface._global_mapping, f"AttentionInterface keeps its functions elsewhere ({TOLD})"

    def mine(*args, **kwargs):
        raise AssertionError

    AttentionInterface.register("interdistill-contract", mine)
    try:
        assert ALL_ATTENTION_FUNCTIONS["interdistill-contract"] is mine
    finally:
        AttentionInterface._global_mapping.pop("interdistill-contract")


def test_hooks_of_training_and_saving():
    from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState

    expected = {
        "_save_checkpoint": ["self", "model", "trial"],
        "save_model": ["self", "output_dir", "_internal_call"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_issue_warnings_after_load": ["self", "load_result"],
    }
    for method, parameters in expected.items():
        found = list(inspect.signature(getattr(Trainer, method)).parameters)
        assert found == parameters, f"Trainer.{method} now takes {found} ({TOLD})"
    assert list(inspect.signature(Trainer.train).parameters)[:2] == ["self", "resume_from_checkpoint"], TOLD
    assert hasattr(TrainerCallback, "on_pre_optimizer_step"), f"gradients cannot be looked at before a step ({TOLD})"
    assert "on_pre_optimizer_step" in inspect.getsource(Trainer), f"on_pre_optimizer_step is never called ({TOLD})"
    assert "model_accepts_loss_kwargs" in inspect.getsource(Trainer), f"losses are divided elsewhere ({TOLD})"
    state = EarlyStoppingCallback(2).state()
    assert state["attributes"] == {"early_stopping_patience_counter": 0}, f"early stopping is kept elsewhere ({TOLD})"
    assert "stateful_callbacks" in TrainerState.__dataclass_fields__, f"callbacks are kept elsewhere ({TOLD})"


def test_helpers_that_are_imported():
    from transformers.trainer_pt_utils import get_length_grouped_indices  # noqa: F401
    from transformers.trainer_utils import HubStrategy  # noqa: F401
    from transformers.utils import PushInProgress, cached_file, find_adapter_config_file  # noqa: F401
    from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config  # noqa: F401
    from trl.data_utils import get_dataset_column_names, is_conversational  # noqa: F401
    from trl.trainer.reward_trainer import DataCollatorForPreference  # noqa: F401
    from trl.trainer.utils import get_config_model_id  # noqa: F401
