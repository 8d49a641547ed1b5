"""Small teachers and preferences that they can learn."""

from __future__ import annotations

import os
import signal

from transformers import TrainerCallback

from hf_interdistill import InteractionTeacher, InteractionTeacherConfig
from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer, tokenized_pair
from support.tokenizers import tokenizer_of


def batch_of(teacher, rows):
    tokenize = PreferenceTokenizer(tokenizer_of("bytes"), teacher.tokenizer)
    columns = [tokenize(row, i) for i, row in enumerate(rows)]
    packed = []
    for row in columns:
        packed += teacher.layout.pack(tokenized_pair(row))
    batch = {name: tensor.unflatten(0, (-1, 2)) for name, tensor in teacher.format.collate(packed).items()}
    return batch, max(sum(row["unit_sizes"]) for row in columns)


LEARNABLE = [
    {"prompt": f"question {i} about {topic}?", "chosen": f"{good} {topic}", "rejected": f"{bad} {topic}"}
    for i, (topic, good, bad) in enumerate(
        (topic, good, bad)
        for topic in ("bread", "milk", "water", "wine", "dogs", "cats", "rain", "snow")
        for good in ("Here is how to do it:", "You can try this:", "The best way is")
        for bad in ("No idea about", "Go away with your")
    )
]


def settings(folder, **changes) -> InteractionTeacherConfig:
    return InteractionTeacherConfig(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "per_device_train_batch_size": 8,
            "learning_rate": 2e-3,
            "warm_start_epochs": 4,
            "num_train_epochs": 4,
            "eval_fraction": 0.25,
            "early_stopping_patience": 20,
            # A key bias has no gradient but rounding noise (softmax ignores it), which a small epsilon would turn
            # into full steps of random sign.
            "adam_epsilon": 1e-5,
            **changes,
        }
    )


def small_teacher() -> InteractionTeacher:
    from transformers import BertConfig, BertModel, set_seed

    tokenizer = tokenizer_of("wordpiece")
    set_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return InteractionTeacher(BertModel(BertConfig(vocab_size=900, pad_token_id=0, **shape)), tokenizer)


class KillAt(TrainerCallback):
    """Kills the process, as `kill -9` would, at a step of a stage."""

    def __init__(self, stage, step):
        self.stage, self.step = stage, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(self.stage) and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
