# SPDX-License-Identifier: BSD-3-Clause
"""Arguments of a run: learning rates, order of the pairs, task recipes, and errors."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf.data.pairs import PairDataset
from blip_hf.data.scenes import Scenes
from blip_hf.training import BlipFinetuningArguments, BlipTrainingArguments
from blip_hf.training.sampling import CaptionLengthSampler
from blip_hf.training.schedules import blip_learning_rate, linear_ramp
from tests.support.trainers import TensorPairs, make_model, make_trainer


# salesforce/BLIP configs/pretrain.yaml
RECIPE = {"learning_rate": 3e-4, "min_learning_rate": 1e-6, "decay_rate": 0.9, "warmup_learning_rate": 1e-6}


def test_learning_rate_decays_per_epoch_to_its_minimum():
    rates = [blip_learning_rate(step, steps_per_epoch=10, warmup_steps=0, **RECIPE) for step in (0, 9, 10, 29, 1000)]
    # 3e-4, then 3e-4 * 0.9, then 3e-4 * 0.81; after 100 epochs 3e-4 * 0.9**100 = 8e-9 is below the floor.
    assert_close(rates, [3e-4, 3e-4, 2.7e-4, 2.43e-4, 1e-6])


def test_learning_rate_rises_linearly_from_its_warm_up_value():
    rates = [blip_learning_rate(step, steps_per_epoch=5000, warmup_steps=3000, **RECIPE) for step in (0, 1500, 3000)]
    # Half way: 1e-6 + (3e-4 - 1e-6) / 2 = 1.505e-4.
    assert_close(rates, [1e-6, 1.505e-4, 3e-4])


def test_warmup_longer_than_an_epoch_stays_below_the_epochs_learning_rate():
    def rate(step):
        return blip_learning_rate(step, steps_per_epoch=1000, warmup_steps=3000, **RECIPE)

    # Step 2000: the ramp is at 1e-6 + 2.99e-4 * 2 / 3 = 2.0033e-4, the epoch at 2.43e-4.
    # Step 2999: the ramp is at 2.999e-4, the epoch at 2.43e-4.
    assert_close([rate(2000), rate(2999)], [2.003333e-4, 2.43e-4], rtol=1e-6, atol=0)


def test_warmup_of_zero_steps_starts_at_the_full_rate():
    assert [linear_ramp(0, 0), linear_ramp(3, 4), linear_ramp(5, 4)] == [1.0, 0.75, 1.0]


def test_the_optimiser_follows_the_schedule(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, warmup_steps=2, decay_rate=0.5)
    trainer.train()
    # Two steps per epoch: warm-up 1e-6 and 1.505e-4, then epoch 1 at 1.5e-4.
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert_close(rates, [1e-6, 1.505e-4, 1.5e-4, 1.5e-4])


def test_length_grouped_batches_cover_all_captions():
    lengths = torch.randint(3, 30, (1000,)).tolist()
    sampler = CaptionLengthSampler(lengths, batch_size=10, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(1000))
    batches = torch.tensor([lengths[i] for i in order]).view(100, 10)
    spread = (batches.max(dim=1).values - batches.min(dim=1).values).float().mean()
    assert spread < 4  # of 26 lengths; a plain shuffle has 22
    assert batches.float().mean(dim=1).diff().abs().max() > 10  # short and long ones are mixed
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_trainer_groups_by_length_on_request(tmp_path):
    pairs = PairDataset(Scenes(40, image_size=32))
    trainer = make_trainer(tmp_path, train_dataset=pairs, train_sampling_strategy="group_by_length")
    sampler = trainer.get_train_dataloader().batch_sampler.sampler
    words = [len(caption.split()) for caption in Scenes(40, image_size=32).captions()]
    assert sampler.lengths.tolist() == words
    # Evaluation needs no lengths and keeps its order.
    assert list(trainer.get_eval_dataloader(pairs).batch_sampler.sampler) == list(range(40))


def test_fixed_temperature_is_not_trained(tmp_path):
    for learn_temperature in (True, False):
        model = make_model()
        make_trainer(tmp_path, model, learn_temperature=learn_temperature).train()
        assert (model.temp.item() == pytest.approx(0.07, abs=1e-6)) is not learn_temperature


def test_schedules_of_transformers_are_available_by_name(tmp_path):
    trainer = make_trainer(tmp_path, lr_scheduler_type="cosine", max_steps=2)
    trainer.train()
    # Half a cosine over two steps: 1, then (1 + cos(pi / 2)) / 2 = 0.5.
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert_close(rates, [3e-4, 1.5e-4])


def test_warmup_longer_than_the_run_warns(tmp_path, caplog):
    make_trainer(tmp_path, warmup_steps=3000).train()
    assert "warm-up takes 3000 steps and the run 2" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "config.text_config.label_smoothing"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"min_learning_rate": 1.0}, "min_learning_rate is 1.0"),
        ({"warmup_learning_rate": -1.0}, "warmup_learning_rate is -1.0"),
        ({"decay_rate": 0.0}, "decay_rate is 0.0"),
    ],
)
def test_invalid_arguments_raise(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        BlipTrainingArguments(str(tmp_path), use_cpu=True, **fields)


def test_arguments_round_trip_through_a_dictionary(tmp_path):
    args = BlipTrainingArguments(str(tmp_path), use_cpu=True)
    assert BlipTrainingArguments(**args.to_dict()).lr_scheduler_type == "blip"


def test_keyword_arguments_override_the_recipe_of_a_task(tmp_path):
    args = BlipFinetuningArguments.for_task("nlvr2", output_dir=str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.num_train_epochs, args.lr_scheduler_type) == (3e-5, 15, "blip_cosine")
    args = BlipFinetuningArguments.for_task("nlvr2", output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-4)
    assert (args.learning_rate, args.num_train_epochs) == (1e-4, 15)
    # The defaults of the class are those of retrieval.
    plain = BlipFinetuningArguments(output_dir=str(tmp_path), use_cpu=True)
    assert BlipFinetuningArguments.for_task("retrieval", output_dir=str(tmp_path), use_cpu=True) == plain


def test_unknown_task_raises_with_the_known_tasks():
    with pytest.raises(
        ValueError, match="task='reasoning' is unknown; pass one of 'caption', 'retrieval', 'vqa', 'nlvr2'"
    ):
        BlipFinetuningArguments.for_task("reasoning", output_dir="runs")


def test_dataset_smaller_than_a_batch_raises(tmp_path):
    with pytest.raises(ValueError, match=r"has 3 records and a step takes 4 .*Lower `per_device_train_batch_size`"):
        make_trainer(tmp_path, train_dataset=TensorPairs(3)).train()
    trainer = make_trainer(tmp_path, train_dataset=TensorPairs(3), dataloader_drop_last=False, max_steps=1)
    trainer.train()
    assert trainer.model.queue.num_enqueued == 3
