# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf"]
# ///
"""Fine-tune a matcher for image-text retrieval and evaluate it in two stages.

python examples/finetune_retrieval.py --output_dir runs/retrieval --data train.json --eval_data val.json
python examples/finetune_retrieval.py --output_dir runs/retrieval --tiny  # random weights, half a minute
"""

import argparse
from collections.abc import Sequence

import torch
from transformers import set_seed

from blip_hf import BlipForRetrievalTraining, BlipProcessor, BlipRetrievalTrainingConfig, evaluate_retrieval
from blip_hf.data.collators import BlipPretrainingCollator
from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import load_pairs
from blip_hf.data.scenes import Scenes
from blip_hf.data.transforms import TrainTransform
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from blip_hf.training import BlipContrastiveTrainer, BlipFinetuningArguments


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tunes with the ITC and ITM losses, saves the matcher and evaluates both stages."""
    options = parse_options(argv)
    set_seed(0)
    if options.tiny:
        scenes, eval_pairs = Scenes(256), Scenes(64, start=256)
        train_dataset = PairDataset(scenes)
        model, processor = make_tiny_model(scenes.captions())
    else:
        pairs, eval_pairs = load_pairs(options.data), load_pairs(options.eval_data)
        # Starts from a matcher or a pre-training checkpoint, and copies its weights to the momentum encoder.
        queue_size = min(57_600, len(pairs) // 2)
        model = BlipForRetrievalTraining.from_pretrained(options.model, queue_size=queue_size, dtype=torch.float32)
        processor = BlipProcessor.from_pretrained(options.model)
        train_dataset = PairDataset(pairs, TrainTransform(model.config.vision_config.image_size, min_scale=0.5))

    # Learning rate, epochs and batch of 256 of the paper (table 14). Negatives come from 32 pairs and the queue.
    recipe = {"learning_rate": 1e-3, "num_train_epochs": 2} if options.tiny else {"gradient_accumulation_steps": 8}
    trainer = BlipContrastiveTrainer(
        model,
        BlipFinetuningArguments.for_task(
            "retrieval",
            output_dir=options.output_dir,
            per_device_train_batch_size=32,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=0.1,
            save_strategy="no",
            **recipe,
        ),
        train_dataset=train_dataset,
        data_collator=BlipPretrainingCollator(processor, max_length=35),
        processing_class=processor,
    )
    trainer.train()

    matcher = model.export_retriever()  # transformers can load it
    matcher.save_pretrained(options.output_dir)
    processor.save_pretrained(options.output_dir)
    # The ITM head re-ranks the 128 nearest by cosine (256 for COCO: the paper, section 5.1).
    result = evaluate_retrieval(matcher, processor, eval_pairs, k=16 if options.tiny else 128)
    print(f"{'':24}{'by cosine':>12}{'re-ranked':>12}")
    for name, value in result.reranked.items():
        print(f"{name:24}{result.itc[name]:12.3f}{value:12.3f}")


def make_tiny_model(captions: Sequence[str]) -> tuple[BlipForRetrievalTraining, BlipProcessor]:
    """Makes a matcher with random weights and the vocabulary of the captions."""
    processor = BlipProcessor.from_bert_tokenizer(train_wordpiece_tokenizer(captions), image_size=64)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision_config = {**sizes, "image_size": 64, "patch_size": 16}
    text_config = {**sizes, **processor.config_token_ids()}
    config = BlipRetrievalTrainingConfig(vision_config=vision_config, text_config=text_config, queue_size=128)
    return BlipForRetrievalTraining(config), processor


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="folder to save the matcher in")
    parser.add_argument("--model", default="Salesforce/blip-itm-base-coco", help="matcher to start from")
    parser.add_argument("--data", help="pairs to train on: JSON, a folder, Parquet, tars or a data set")
    parser.add_argument("--eval_data", help="pairs to evaluate on")
    parser.add_argument("--tiny", action="store_true", help="train random weights on a few drawn scenes")
    options = parser.parse_args(argv)
    if not options.tiny and not (options.data and options.eval_data):
        parser.error("pass --data and --eval_data, or --tiny")
    return options


if __name__ == "__main__":
    main()
