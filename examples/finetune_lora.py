# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf[lora]"]
# ///
"""Fine-tune a captioner with low-rank adapters (LoRA), which are a few per cent of the weights.

python examples/finetune_lora.py --output_dir runs/lora --data train.json
python examples/finetune_lora.py --output_dir runs/lora --tiny  # random weights, half a minute

The other models have the same attention layers: `qkv` in the image encoder, `query` and `value` in the text model.
`modules_to_save` trains a new head, such as `itm_head` or `cls_head`, as a whole.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

from blip_hf import BlipCaptioner, BlipConfig, BlipForConditionalGeneration, BlipProcessor, CaptionSettings
from blip_hf.data.collators import BlipCaptioningCollator
from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import load_pairs
from blip_hf.data.scenes import Scenes
from blip_hf.data.transforms import TrainTransform
from blip_hf.data.vocabulary import train_wordpiece_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tunes, saves the adapter and the merged captioner, and captions one image."""
    options = parse_options(argv)
    set_seed(0)
    if options.tiny:
        train_dataset = PairDataset(Scenes(256))
        captioner, processor = make_tiny_captioner(train_dataset.pairs.captions())
    else:
        captioner = BlipForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
        processor = BlipProcessor.from_pretrained(options.model)
        transform = TrainTransform(captioner.config.vision_config.image_size, min_scale=0.5)
        train_dataset = PairDataset(load_pairs(options.data), transform)

    # The processor saves the prompt of training, which captioner, evaluation and CapFilt then use.
    processor.caption_settings = CaptionSettings.for_finetuning(processor.caption_settings)

    # The attention layers of both encoders. Rank and factor are common choices, not from the paper.
    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["qkv", "query", "value"])
    model = get_peft_model(captioner, adapter)
    model.print_trainable_parameters()
    trainer = Trainer(
        model,
        TrainingArguments(
            options.output_dir,
            learning_rate=1e-3 if options.tiny else 1e-4,
            num_train_epochs=2 if options.tiny else 5,
            per_device_train_batch_size=32,
            bf16=torch.cuda.is_available(),
            logging_steps=0.1,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,  # the collator needs them
        ),
        train_dataset=train_dataset,
        data_collator=BlipCaptioningCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()  # saves the adapter, for `peft.PeftModel.from_pretrained(captioner, output_dir)`

    merged = model.merge_and_unload().eval()  # a plain captioner
    merged.save_pretrained(Path(options.output_dir) / "merged")
    processor.save_pretrained(Path(options.output_dir) / "merged")
    (caption,) = BlipCaptioner(merged, processor)(train_dataset[0]["image"])
    print(f"{train_dataset[0]['caption']!r} is captioned {caption!r}")


def make_tiny_captioner(captions: Sequence[str]) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Makes a captioner with random weights and the vocabulary of the captions."""
    tokenizer = train_wordpiece_tokenizer([*captions, CaptionSettings.prompt])
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=64)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    text_config = {**sizes, **processor.config_token_ids()}
    config = BlipConfig(vision_config={**sizes, "image_size": 64, "patch_size": 8}, text_config=text_config)
    return BlipForConditionalGeneration(config), processor


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="folder to save the adapter and the merged captioner in")
    parser.add_argument("--model", default="Salesforce/blip-image-captioning-base", help="checkpoint to start from")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="pairs to train on: JSON, a folder, Parquet, tars or a data set")
    source.add_argument("--tiny", action="store_true", help="train random weights on a few drawn scenes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
