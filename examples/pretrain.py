# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf"]
# ///
"""Pre-train a small BLIP with its three objectives, on drawn scenes or on your pairs.

python examples/pretrain.py --output_dir runs/pretrain
python examples/pretrain.py --output_dir runs/pretrain --data train.json
python examples/pretrain.py --output_dir runs/pretrain --tiny  # 15 seconds on two cores
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import set_seed

from blip_hf import BlipForPreTraining, BlipPreTrainingConfig, BlipProcessor
from blip_hf.caption_settings import PRETRAINING_SETTINGS
from blip_hf.data.collators import BlipPretrainingCollator
from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import load_pairs
from blip_hf.data.scenes import Scenes
from blip_hf.data.transforms import TrainTransform
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from blip_hf.training import BlipContrastiveTrainer, BlipTrainingArguments


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-trains, and saves the model, its captioner and its retriever."""
    options = parse_options(argv)
    num_pairs, width, num_layers, num_epochs = (256, 64, 2, 2) if options.tiny else (10_000, 256, 4, 20)
    image_size = 64
    set_seed(0)

    # Pairs, and a tokenizer trained on their captions.
    if options.data is None:
        pairs = Scenes(num_pairs, image_size=image_size)
        # Captions of scenes name positions, which crops and flips would change.
        train_dataset, captions = PairDataset(pairs), pairs.captions()
    else:
        pairs = load_pairs(options.data)
        train_dataset, captions = PairDataset(pairs, TrainTransform(image_size)), pairs["caption"]
    eval_dataset = PairDataset(Scenes(100, start=num_pairs, image_size=image_size)) if options.data is None else None
    tokenizer = train_wordpiece_tokenizer([*captions, "a picture of"])
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=image_size)

    trainer = BlipContrastiveTrainer(
        make_model(processor, width, num_layers, queue_size=min(4096, len(train_dataset) // 2)),
        BlipTrainingArguments(
            options.output_dir,
            num_train_epochs=num_epochs,
            per_device_train_batch_size=32,
            warmup_steps=0.1,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=0.1,
            eval_strategy="no" if eval_dataset is None else "epoch",
            save_strategy="no",
            disable_tqdm=options.tiny,
        ),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=BlipPretrainingCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    # Transformers can load both parts. Pre-training has no prompt.
    processor.caption_settings = PRETRAINING_SETTINGS
    folder, model = Path(options.output_dir), trainer.model
    for name, part in (("captioner", model.export_captioner()), ("retriever", model.export_retriever())):
        part.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    print(f"Wrote {folder}, {folder / 'captioner'} and {folder / 'retriever'}")


def make_model(processor: BlipProcessor, width: int, num_layers: int, queue_size: int) -> BlipForPreTraining:
    """Makes a model with random weights; `from_vision_text_pretrained` would start from a ViT and a BERT."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": num_layers}
    sizes["num_attention_heads"] = 4
    image = {"image_size": processor.image_processor.size["height"], "patch_size": 8}
    fields = {"image_text_hidden_size": width, "queue_size": queue_size}
    text = {**sizes, **processor.config_token_ids()}
    return BlipForPreTraining(BlipPreTrainingConfig(vision_config={**sizes, **image}, text_config=text, **fields))


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="folder to save the models in")
    parser.add_argument("--data", help="pairs to train on; by default drawn scenes")
    parser.add_argument("--tiny", action="store_true", help="train a small model on a few scenes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
