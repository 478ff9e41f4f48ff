# SPDX-License-Identifier: BSD-3-Clause
"""Tiny trainers on the CPU, and their training pairs: tensors, or records with unreadable images."""

import torch
from PIL import Image
from torch.utils.data import Dataset

from blip_hf import BlipForPreTraining
from blip_hf.data.collators import BlipCaptioningCollator, BlipPretrainingCollator
from blip_hf.training import BlipContrastiveTrainer, BlipTrainer, BlipTrainingArguments
from tests.support.tiny_models import tiny_batch, tiny_capfilt, tiny_pretraining_config


FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}


class TensorPairs(Dataset):
    """Random pairs as tensors, whose images change with the epoch."""

    def __init__(self, num_pairs=8, image_ids=None):
        self.columns = tiny_batch([6] * num_pairs)
        self.columns["image_ids"] = torch.arange(num_pairs) if image_ids is None else torch.tensor(image_ids)
        self.epochs = []

    def __len__(self):
        return len(self.columns["image_ids"])

    def __getitem__(self, i):
        item = {name: column[i] for name, column in self.columns.items()}
        return item | {"pixel_values": item["pixel_values"] + sum(self.epochs[-1:])}

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def make_arguments(folder, **fields):
    defaults = {"max_steps": -1, "num_train_epochs": 1, "warmup_steps": 0, "logging_steps": 1, "save_strategy": "no"}
    defaults |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 2}
    return BlipTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**defaults, **fields})


def make_model(seed=0, dropout=0.0, **fields):
    torch.manual_seed(seed)
    config = tiny_pretraining_config(**fields)
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = dropout
    return BlipForPreTraining(config)


def make_trainer(folder, model=None, train_dataset=None, eval_dataset=None, callbacks=None, **fields):
    fields = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 2, **fields}
    return BlipContrastiveTrainer(
        make_model() if model is None else model,
        make_arguments(folder, **fields),
        train_dataset=TensorPairs() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        callbacks=callbacks,
    )


def make_records(num_records, broken=()):
    return [
        {
            "image": "lost.jpg" if i in broken else Image.new("RGB", (32, 32), (20 * i, 90, 255 - 20 * i)),
            "caption": " ".join("abcdefghijkl"[: i + 1]),
            "image_id": i,
        }
        for i in range(num_records)
    ]


def make_contrastive_trainer(folder, train=None, evaluate=None, weights=None, **fields):
    torch.manual_seed(0)
    _, processor, *_ = tiny_capfilt()
    config = tiny_pretraining_config(queue_size=4, **(weights or {}))
    for name, value in processor.config_token_ids().items():
        setattr(config.text_config, name, value)
    return BlipContrastiveTrainer(
        BlipForPreTraining(config),
        make_arguments(folder, **fields),
        train_dataset=train,
        eval_dataset=evaluate,
        data_collator=BlipPretrainingCollator(processor),
    )


def make_captioning_trainer(folder, train=None, evaluate=None, **fields):
    captioner, processor, *_ = tiny_capfilt()
    return BlipTrainer(
        captioner,
        make_arguments(folder, **fields),
        train_dataset=train,
        eval_dataset=evaluate,
        data_collator=BlipCaptioningCollator(processor, prompt=""),
    )
