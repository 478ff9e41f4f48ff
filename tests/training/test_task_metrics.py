# SPDX-License-Identifier: BSD-3-Clause
"""The best checkpoint by the metric of the task, for each task, and metrics that are refused before training."""

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from blip_hf import (
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
    BlipRetrievalTrainingConfig,
    BlipVisualReasoningConfig,
)
from blip_hf.data.collators import BlipCaptioningCollator, BlipPretrainingCollator
from blip_hf.data.nlvr2 import BlipNlvr2Collator, Nlvr2Dataset
from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import group_captions, load_pairs
from blip_hf.data.vqa import BlipVqaCollator, VqaDataset
from blip_hf.evaluation.caption import evaluate_captions
from blip_hf.evaluation.nlvr2 import evaluate_nlvr2
from blip_hf.evaluation.retrieval import evaluate_retrieval
from blip_hf.evaluation.vqa import evaluate_vqa
from blip_hf.training import BlipContrastiveTrainer, BlipTrainer
from blip_hf.training.task_metrics import caption_evaluation, evenly_spaced, records_of, select_images
from tests.support.files import write_json
from tests.support.images import write_image
from tests.support.tiny_models import TEXT, VISION, tiny_capfilt, tiny_model_for
from tests.support.trainers import (
    TensorPairs,
    make_arguments,
    make_captioning_trainer,
    make_contrastive_trainer,
    make_records,
)
from tests.support.vocabularies import make_processor


QUESTIONS = [
    {**record, "question": "a b", "question_id": i, "answers": ["a", "b", "a"], "weights": [1 / 3] * 3}
    for i, record in enumerate(make_records(4))
]
SENTENCES = [
    {"images": [record["image"]] * 2, "sentence": record["caption"], "label": i % 2 == 0}
    for i, record in enumerate(make_records(4))
]


def two_heads(config_class, processor, **fields):
    return config_class(
        text_config={**TEXT, **processor.config_token_ids()},
        vision_config=dict(VISION),
        image_text_hidden_size=8,
        **fields,
    )


def make_task(task):
    """Returns model, records, data set, collator, trainer class, and the evaluation to compare with."""
    processor = make_processor()
    torch.manual_seed(0)
    if task == "caption":
        model, processor, *_ = tiny_capfilt()
        return (
            model,
            PairDataset(make_records(4)),
            BlipCaptioningCollator(processor, prompt="a"),
            lambda model, records: (
                evaluate_captions(model, processor, group_captions(records), prompt="a", metrics=["cider"]).metrics
            ),
        )
    if task == "vqa":
        model = tiny_model_for(BlipForQuestionAnswering, processor)
        return (
            model,
            VqaDataset(QUESTIONS),
            BlipVqaCollator(processor),
            lambda model, records: evaluate_vqa(model, processor, records).metrics(),
        )
    if task == "nlvr2":
        model = BlipForVisualReasoning(two_heads(BlipVisualReasoningConfig, processor, merge_from_layer=1))
        return (
            model,
            Nlvr2Dataset(SENTENCES),
            BlipNlvr2Collator(processor),
            lambda model, records: evaluate_nlvr2(model, processor, records).metrics(),
        )
    model = BlipForRetrievalTraining(two_heads(BlipRetrievalTrainingConfig, processor, queue_size=4))
    return (
        model,
        PairDataset(make_records(4)),
        BlipPretrainingCollator(processor),
        lambda model, records: evaluate_retrieval(model.export_retriever(), processor, records).metrics(),
    )


METRICS = {"caption": "cider", "vqa": "accuracy", "nlvr2": "accuracy", "retrieval": "image_to_text_r@1"}


def make_trainer(task, folder, metric, **fields):
    model, dataset, collator, evaluate = make_task(task)
    trainer_class = BlipContrastiveTrainer if task == "retrieval" else BlipTrainer
    defaults = {"per_device_train_batch_size": 2, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    arguments = make_arguments(folder, metric_for_best_model=metric, **{**defaults, **fields})
    trainer = trainer_class(model, arguments, train_dataset=dataset, eval_dataset=dataset, data_collator=collator)
    return trainer, evaluate


@pytest.mark.parametrize("task", METRICS)
def test_the_best_checkpoint_is_chosen_by_the_metric_of_the_task(task, tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "learning_rate": 1e-2}
    trainer, evaluate = make_trainer(task, tmp_path, METRICS[task], **fields)
    with CaptureLogger(logging.get_logger("transformers.trainer")) as captured:
        trainer.train()
    assert "missing keys" not in captured.out  # the tied weights of the best checkpoint
    name = f"eval_{METRICS[task]}"
    found = [log[name] for log in trainer.state.log_history if name in log]
    assert len(found) == 2
    assert trainer.state.best_metric == max(found)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{found.index(max(found)) + 1}")
    # The model is that of the best checkpoint, and the metric that of the task's own evaluation.
    expected = evaluate(trainer.model, trainer.eval_dataset.pairs)
    assert expected[METRICS[task]] == pytest.approx(max(found))


@pytest.mark.parametrize("task", METRICS)
def test_metrics_of_the_task_are_computed_only_if_they_choose_the_checkpoint(task, tmp_path):
    trainer, _ = make_trainer(task, tmp_path, "loss")
    assert not {"eval_cider", "eval_accuracy", "eval_itc_r_mean"} & trainer.evaluate().keys()
    assert trainer.args.greater_is_better is False


@pytest.mark.parametrize(
    ("task", "metric", "known"),
    [
        ("caption", "cidre", r"loss, bleu_1, .*cider"),
        ("vqa", "cider", r"loss, accuracy\."),
        ("nlvr2", "acc", r"loss, accuracy, consistency\."),
        ("retrieval", "loss_lm", r"loss, loss_itc, loss_itm"),
    ],
)
def test_unknown_metrics_are_refused_before_training(task, metric, known, tmp_path):
    with pytest.raises(ValueError, match=rf"metric_for_best_model='{metric}' is unknown\. Pass one of {known}"):
        make_trainer(task, tmp_path, metric)


def test_pre_training_knows_its_losses_and_recalls(tmp_path):
    for metric in ("loss_lm", "eval_itm_accuracy", "r_mean"):
        trainer = make_contrastive_trainer(
            tmp_path, evaluate=PairDataset(make_records(4)), metric_for_best_model=metric
        )
        assert f"eval_{metric.removeprefix('eval_')}" in trainer.evaluate()
        assert trainer.args.greater_is_better is (metric != "loss_lm")
    with pytest.raises(ValueError, match="'loss_lm' is unknown"):
        make_contrastive_trainer(tmp_path, weights={"lm_weight": 0.0}, metric_for_best_model="loss_lm")


def test_metrics_of_one_of_several_evaluation_sets(tmp_path):
    sets = {"near": PairDataset(make_records(2)), "far": PairDataset(make_records(3))}
    trainer = make_captioning_trainer(tmp_path, evaluate=sets, metric_for_best_model="far_bleu_4")
    metrics = trainer.evaluate()
    assert {"eval_near_bleu_4", "eval_far_bleu_4"} <= metrics.keys()
    with pytest.raises(ValueError, match=r"'bleu_4' is unknown\. Pass one of near_loss, .*far_cider"):
        make_captioning_trainer(tmp_path, evaluate=sets, metric_for_best_model="bleu_4")


def test_sets_that_cannot_be_evaluated_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"needs the records of the evaluation set, which is a TensorPairs"):
        make_captioning_trainer(tmp_path, evaluate=TensorPairs(), metric_for_best_model="cider")
    _, _, collator, _ = make_task("vqa")
    unanswered = VqaDataset([{**QUESTIONS[0], "answers": [], "weights": []}])
    model = tiny_model_for(BlipForQuestionAnswering, collator.processor)
    with pytest.raises(ValueError, match="None of the 1 questions to evaluate on has an answer"):
        BlipTrainer(
            model,
            make_arguments(tmp_path, metric_for_best_model="accuracy"),
            eval_dataset=unanswered,
            data_collator=collator,
        )


def test_a_trainer_without_processor_is_refused(tmp_path):
    captioner, processor, *_ = tiny_capfilt()
    collator = BlipCaptioningCollator(processor)
    arguments = make_arguments(tmp_path, metric_for_best_model="cider")
    with pytest.raises(ValueError, match=r"needs the processor of the model\. Pass `processing_class=processor`"):
        BlipTrainer(
            captioner, arguments, eval_dataset=make_records(2), data_collator=lambda records: collator(records)
        )


def test_a_metric_without_evaluations_during_training_warns(tmp_path, caplog):
    make_captioning_trainer(tmp_path, evaluate=make_records(2), metric_for_best_model="cider")
    assert "chooses no checkpoint" in caplog.text


def test_generation_settings_of_the_task_evaluation_are_used(tmp_path):
    captioner, processor, *_ = tiny_capfilt()
    evaluation = caption_evaluation(metrics=["bleu"], max_length=4, prompt="")
    trainer = BlipTrainer(
        captioner,
        make_arguments(tmp_path, metric_for_best_model="bleu_1"),
        eval_dataset=make_records(3),
        data_collator=BlipCaptioningCollator(processor, prompt=""),
        task_evaluation=evaluation,
    )
    found = trainer.evaluate()
    expected = evaluation.evaluate(captioner, processor, make_records(3), 2)
    assert "eval_cider" not in found
    assert found["eval_bleu_1"] == pytest.approx(expected["bleu_1"])


def test_task_metrics_do_not_change_training(tmp_path):
    def train(metric):
        trainer, _ = make_trainer("vqa", tmp_path, metric, max_steps=3)
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history if "loss" in log]

    assert train("accuracy") == train("loss")


def test_at_most_so_many_images_are_evaluated(tmp_path):
    trainer, _ = make_trainer("nlvr2", tmp_path, "accuracy", max_eval_samples=3)
    assert trainer.evaluate()["eval_num_pairs"] == 3
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    for i in range(3):
        write_image(tmp_path / f"{i}.png")
    records = [{"image": f"{i}.png", "caption": ["a", "b"], "image_id": i} for i in range(3)]
    pairs = load_pairs(write_json(tmp_path / "pairs.json", records))
    for source in (pairs, list(pairs)):
        assert [pair["image_id"] for pair in select_images(source, 2)] == [0, 0, 1, 1]
        assert select_images(source, 3) is source
    with pytest.raises(ValueError, match="max_eval_samples is 0, expected 1 or more"):
        make_arguments(tmp_path, max_eval_samples=0)


def test_records_are_found_behind_subsets():
    records = make_records(4)
    assert list(records_of(Subset(PairDataset(records), [2, 0]))) == [records[2], records[0]]
    assert records_of(TensorPairs()) is None
    assert records_of([{"image": Image.new("RGB", (2, 2))}])
