# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf"]
# ///
"""Fine-tune a captioner with the Trainer of transformers, on your pairs or on drawn scenes.

python examples/finetune_caption.py --output_dir runs/captioner --data train.json
python examples/finetune_caption.py --output_dir runs/captioner --tiny  # random weights, half a minute
"""

import argparse
from collections.abc import Sequence

import torch
from transformers import Trainer, TrainingArguments, set_seed

from blip_hf import BlipCaptioner, BlipConfig, BlipForConditionalGeneration, BlipProcessor, CaptionSettings
from blip_hf.data.collators import BlipCaptioningCollator
from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import load_pairs
from blip_hf.data.scenes import Scenes
from blip_hf.data.transforms import TrainTransform
from blip_hf.data.vocabulary import train_wordpiece_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tunes, saves and captions one image."""
    options = parse_options(argv)
    set_seed(0)
    if options.tiny:
        scenes = Scenes(256)
        model, processor = make_tiny_captioner(scenes.captions())
        train_dataset = PairDataset(scenes)
    else:
        # In float32, because half-precision weights lose small updates.
        model = BlipForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
        processor = BlipProcessor.from_pretrained(options.model)
        # Fine-tuning crops less than pre-training (salesforce/BLIP, data/__init__.py).
        transform = TrainTransform(model.config.vision_config.image_size, min_scale=0.5)
        train_dataset = PairDataset(load_pairs(options.data), transform)

    # The processor saves the prompt of training, which captioner, evaluation and CapFilt then use.
    processor.caption_settings = CaptionSettings.for_finetuning(processor.caption_settings)

    # Learning rate, epochs and a batch of 256: the paper, table 14.
    learning_rate, num_epochs, num_accumulated = (1e-3, 2, 1) if options.tiny else (1e-5, 5, 8)
    trainer = Trainer(
        model,
        TrainingArguments(
            options.output_dir,
            learning_rate=learning_rate,
            num_train_epochs=num_epochs,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=num_accumulated,
            weight_decay=0.05,
            lr_scheduler_type="cosine",
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=0.1,
            save_strategy="no",
            remove_unused_columns=False,  # the collator needs them
        ),
        train_dataset=train_dataset,
        data_collator=BlipCaptioningCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()

    (caption,) = BlipCaptioner(model, processor)(train_dataset[0]["image"])
    print(f"{train_dataset[0]['caption']!r} is captioned {caption!r}")


def make_tiny_captioner(captions: Sequence[str]) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Makes a captioner with random weights and the vocabulary of the captions."""
    tokenizer = train_wordpiece_tokenizer([*captions, CaptionSettings.prompt])
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=64)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BlipConfig(
        vision_config={**sizes, "image_size": 64, "patch_size": 8},
        text_config={**sizes, **processor.config_token_ids()},
    )
    return BlipForConditionalGeneration(config), processor


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="folder to save the captioner in")
    parser.add_argument("--model", default="Salesforce/blip-image-captioning-base", help="captioner to start from")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="pairs to train on: JSON, a folder, Parquet, tars or a data set")
    source.add_argument("--tiny", action="store_true", help="train random weights on a few drawn scenes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
