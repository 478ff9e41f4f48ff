# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf"]
# ///
"""Fine-tune a VQA model and evaluate it with generated answers and with answers ranked from a list.

python examples/finetune_vqa.py --output_dir runs/vqa --data vqa_train.json --eval_data vqa_val.json
python examples/finetune_vqa.py --output_dir runs/vqa --tiny  # random weights, half a minute
"""

import argparse
from collections.abc import Sequence

import torch
from transformers import set_seed

from blip_hf import BlipConfig, BlipForQuestionAnswering, BlipProcessor, evaluate_vqa
from blip_hf.data.readers.vqa import load_vqa, most_common_answers
from blip_hf.data.scenes import Scenes, scene_vocabulary_texts
from blip_hf.data.transforms import TrainTransform
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from blip_hf.data.vqa import BlipVqaCollator, VqaDataset
from blip_hf.training import BlipFinetuningArguments, BlipTrainer


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tunes, saves, and evaluates both ways of answering."""
    options = parse_options(argv)
    set_seed(0)
    if options.tiny:
        questions, eval_questions = load_vqa(Scenes(48)), load_vqa(Scenes(12, start=48))
        train_dataset = VqaDataset(questions)
        model, processor = make_tiny_model()
    else:
        questions, eval_questions = load_vqa(options.data), load_vqa(options.eval_data)
        model = BlipForQuestionAnswering.from_pretrained(options.model, dtype=torch.float32)
        processor = BlipProcessor.from_pretrained(options.model)
        transform = TrainTransform(model.config.vision_config.image_size, min_scale=0.5)
        train_dataset = VqaDataset(questions, transform)

    # Learning rate, epochs and batch of 256 of the paper (table 14).
    recipe = {"learning_rate": 1e-3, "num_train_epochs": 2} if options.tiny else {"gradient_accumulation_steps": 8}
    trainer = BlipTrainer(
        model,
        BlipFinetuningArguments.for_task(
            "vqa",
            output_dir=options.output_dir,
            per_device_train_batch_size=32,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=0.1,
            save_strategy="no",
            **recipe,
        ),
        train_dataset=train_dataset,
        data_collator=BlipVqaCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()

    # The paper ranks 3,128 answers.
    answer_list = most_common_answers(questions, 3_128)
    written = evaluate_vqa(model, processor, eval_questions)
    chosen = evaluate_vqa(model, processor, eval_questions, answer_list=answer_list)
    for number in range(3):
        question = eval_questions[number]
        answers = (result.predictions[question["question_id"]] for result in (written, chosen))
        print(question["question"], *map(repr, answers))
    print(f"accuracy: generated {written.accuracy:.3f}, ranked from {len(answer_list)} answers {chosen.accuracy:.3f}")


def make_tiny_model() -> tuple[BlipForQuestionAnswering, BlipProcessor]:
    """Makes a model with random weights and the vocabulary of drawn scenes."""
    tokenizer = train_wordpiece_tokenizer(scene_vocabulary_texts())
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=64)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    text_config = {**sizes, **processor.config_token_ids()}
    config = BlipConfig(vision_config={**sizes, "image_size": 64, "patch_size": 16}, text_config=text_config)
    return BlipForQuestionAnswering(config), processor


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="folder to save the model in")
    parser.add_argument("--model", default="Salesforce/blip-vqa-base", help="checkpoint to start from")
    parser.add_argument("--data", help="questions to train on: the list of BLIP, VQAv2 or Visual Genome")
    parser.add_argument("--eval_data", help="questions to evaluate on")
    parser.add_argument("--tiny", action="store_true", help="train random weights on a few drawn scenes")
    options = parser.parse_args(argv)
    if not options.tiny and not (options.data and options.eval_data):
        parser.error("pass --data and --eval_data, or --tiny")
    return options


if __name__ == "__main__":
    main()
