# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf"]
# ///
"""Fine-tune a model on NLVR2: is a sentence true of two images?

python examples/finetune_nlvr2.py --output_dir runs/nlvr2 --data nlvr_train.json --eval_data nlvr_dev.json
python examples/finetune_nlvr2.py --output_dir runs/nlvr2 --tiny  # random weights, half a minute
"""

import argparse
from collections.abc import Sequence

import torch
from transformers import set_seed

from blip_hf import BlipForVisualReasoning, BlipProcessor, BlipVisualReasoningConfig
from blip_hf.data.nlvr2 import BlipNlvr2Collator, Nlvr2Dataset, Nlvr2TrainTransform
from blip_hf.data.readers import load_nlvr2
from blip_hf.data.scenes import SceneNlvr2, scene_vocabulary_texts
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from blip_hf.evaluation.nlvr2 import evaluate_nlvr2
from blip_hf.training import BlipFinetuningArguments, BlipTrainer


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tunes, saves, and measures accuracy and consistency."""
    options = parse_options(argv)
    set_seed(0)
    if options.tiny:
        train_dataset, eval_records = Nlvr2Dataset(SceneNlvr2(128)), SceneNlvr2(32, start=128)
        model, processor = make_tiny_model()
    else:
        # Both cross-attentions start from the weights of the matcher. Drop path: salesforce/BLIP, models/blip_nlvr.py.
        model = BlipForVisualReasoning.from_matcher_pretrained(options.model, vision_fields={"drop_path_rate": 0.1})
        processor = BlipProcessor.from_pretrained(options.model)
        transform = Nlvr2TrainTransform(model.config.vision_config.image_size)
        train_dataset = Nlvr2Dataset(load_nlvr2(options.data), transform)
        eval_records = load_nlvr2(options.eval_data)

    # Learning rate, epochs and batch of 256 of the paper (table 14).
    recipe = {"learning_rate": 1e-3, "num_train_epochs": 2} if options.tiny else {"gradient_accumulation_steps": 16}
    trainer = BlipTrainer(
        model,
        BlipFinetuningArguments.for_task(
            "nlvr2",
            output_dir=options.output_dir,
            per_device_train_batch_size=16,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=0.1,
            save_strategy="no",
            **recipe,
        ),
        train_dataset=train_dataset,
        data_collator=BlipNlvr2Collator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()

    result = evaluate_nlvr2(model, processor, eval_records)
    print(f"{eval_records[0]['sentence']!r} is predicted {result.predictions[0]}")
    print(f"accuracy {result.accuracy:.3f}, consistency {result.consistency:.3f} of {result.num_pairs} pairs")


def make_tiny_model() -> tuple[BlipForVisualReasoning, BlipProcessor]:
    """Makes a model with random weights and the vocabulary of drawn scenes."""
    processor = BlipProcessor.from_bert_tokenizer(train_wordpiece_tokenizer(scene_vocabulary_texts()), image_size=64)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision_config = {**sizes, "image_size": 64, "patch_size": 16}
    text_config = {**sizes, **processor.config_token_ids()}
    # The lower of the two text layers averages the images, the upper one merges them.
    config = BlipVisualReasoningConfig(vision_config=vision_config, text_config=text_config, merge_from_layer=1)
    return BlipForVisualReasoning(config), processor


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="folder to save the model in")
    parser.add_argument("--model", default="Salesforce/blip-itm-base-coco", help="matcher to start from")
    parser.add_argument(
        "--data", help="image pairs to train on: NLVR2's own file or BLIP's list, in the folder of the images"
    )
    parser.add_argument("--eval_data", help="image pairs to evaluate on")
    parser.add_argument("--tiny", action="store_true", help="train random weights on a few drawn scenes")
    options = parser.parse_args(argv)
    if not options.tiny and not (options.data and options.eval_data):
        parser.error("pass --data and --eval_data, or --tiny")
    return options


if __name__ == "__main__":
    main()
