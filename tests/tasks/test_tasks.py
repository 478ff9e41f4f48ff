# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf finetune` and `blip-hf evaluate`: each task from a pre-trained model to metrics, and each recipe at small scale."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from blip_hf import (
    BlipFinetuningArguments,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipPreTrainingConfig,
    BlipProcessor,
    BlipRetrievalTrainingConfig,
    BlipTrainingArguments,
    CaptionSettings,
)
from blip_hf.cli import finetune, main, pretrain
from blip_hf.cli.parser import parse
from blip_hf.tasks import caption, nlvr2, retrieval, vqa
from blip_hf.tasks import pretrain as pretrain_task
from blip_hf.tasks.base import PAIRS_HELP
from blip_hf.tasks.finetuning import warn_about_training_data
from blip_hf.tasks.pretrain import PretrainOptions
from blip_hf.training.arguments import TASK_RECIPES
from tests.support.files import write_json
from tests.support.images import write_image
from tests.support.paths import EXAMPLES


# The recipes of the whole loop, bootstrap_*.yaml, have another format.
RECIPES = sorted(path for path in (EXAMPLES / "recipes").glob("*.yaml") if not path.stem.startswith("bootstrap"))
# METEOR takes half a minute to start if Java is installed.
SHORT_TESTS = {"caption": ["--metrics", "bleu", "rouge_l", "cider"]}
SHORT = {**SHORT_TESTS, "retrieval": ["--queue_size", "8"]}
SCENES = ["--data", "scenes", "--num_scenes", "8"]
TRAINING = [
    *SCENES,
    "--eval_data",
    "scenes",
    "--num_eval_scenes",
    "4",
    "--max_steps",
    "1",
    "--per_device_train_batch_size",
    "4",
    "--use_cpu",
    "--report_to",
    "none",
    "--disable_tqdm",
    "True",
    "--save_strategy",
    "no",
]


def run(command, capsys, *argv):
    assert main([command, *map(str, argv), "--overwrite"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def task_of(recipe):
    return {"caption": "caption", "retrieval": "retrieval", "vqa": "vqa", "nlvr2": "nlvr2"}[recipe.stem.split("_")[0]]


MAIN_METRICS = {
    "caption": "cider",
    "retrieval": "r_mean",
    "vqa": "accuracy",
    "nlvr2": "consistency",
}


@pytest.mark.parametrize("task", MAIN_METRICS)
def test_finetune_and_evaluate_report_the_same_metrics(task, pretrained, tmp_path, capsys):
    argv = [task, "--model", pretrained, *TRAINING, "--output_dir", tmp_path]
    argv += SHORT.get(task, [])
    trained = run("finetune", capsys, *argv)
    answers = tmp_path / "answers.json"
    argv = [
        task,
        "--model",
        tmp_path,
        "--data",
        "scenes",
        "--first_scene",
        "8",
        "--num_scenes",
        "4",
        "--output",
        answers,
    ]
    metrics = run("evaluate", capsys, *argv, "--device", "cpu", "--no_progress", *SHORT_TESTS.get(task, []))
    assert MAIN_METRICS[task] in metrics
    assert metrics.pop("num_skipped_by_reason") == {}
    shared = {name: value for name, value in metrics.items() if f"eval_{name}" in trained}
    assert {name: trained[f"eval_{name}"] for name in shared} == pytest.approx(shared)
    assert json.loads(answers.read_text())


@pytest.mark.parametrize("task", MAIN_METRICS)
def test_frozen_image_layers_do_not_change(task, pretrained, tmp_path, capsys):
    argv = [task, "--model", pretrained, *TRAINING, "--freeze_vision_layers", 1, "--output_dir", tmp_path]
    run("finetune", capsys, *argv, *SHORT.get(task, []))
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path))
    same = {name for name in before if name.startswith("vision_model.") and torch.equal(before[name], after[name])}
    lower = tuple(f"vision_model.{part}." for part in ("embeddings", "encoder.layers.0"))
    assert same == {name for name in before if name.startswith(lower)}


@pytest.mark.parametrize("task", ["caption", "retrieval", "vqa"])
def test_a_fine_tuned_model_opens_in_plain_transformers(task, pretrained, tmp_path, capsys):
    classes = {
        "caption": transformers.BlipForConditionalGeneration,
        "retrieval": transformers.BlipForImageTextRetrieval,
        "vqa": transformers.BlipForQuestionAnswering,
    }
    argv = [task, "--model", pretrained, *TRAINING, "--output_dir", tmp_path]
    run("finetune", capsys, *argv, *SHORT.get(task, []))
    _, info = classes[task].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem != "pretrain"], ids=lambda path: path.stem)
def test_recipe_runs_at_small_scale(recipe, pretrained, tmp_path, capsys):
    task = task_of(recipe)
    argv = [task, "--config", recipe, "--model", pretrained, *TRAINING, "--image_size", "48", "--output_dir", tmp_path]
    if task == "vqa":
        argv += ["--answer_list", write_json(tmp_path / "answers.json", ["red", "blue", "yes", "no", "2"])]
    metrics = run("finetune", capsys, *argv, *SHORT.get(task, []))
    assert metrics["train_loss"] > 0
    assert f"eval_{MAIN_METRICS[task]}" in metrics
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]["image_size"] == 48
    assert BlipProcessor.from_pretrained(tmp_path).image_processor.size["height"] == 48


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_holds_only_options_and_their_sources(recipe):
    command = pretrain.COMMAND if recipe.stem == "pretrain" else finetune.COMMANDS[task_of(recipe)]
    assert parse(command, ["--config", str(recipe), "--output_dir", "unused", "--use_cpu"]) is not None
    own_choices = ("model:", "data:", "eval_", "split:", "image_root:")
    lines = [line for line in recipe.read_text().splitlines() if line and not line.startswith(("#", *own_choices))]
    assert [line for line in lines if "# repo" not in line and "# the paper" not in line and "# ours" not in line] == [
        line for line in lines if line.startswith("lr_scheduler_type: blip ")
    ]


def test_command_defaults_equal_the_recipes(pretrained):
    for name in ("caption_coco", "retrieval_coco", "vqa", "nlvr2"):
        recipe = next(path for path in RECIPES if path.stem == name)
        values = yaml.safe_load(recipe.read_text())
        argv = ["--model", "m", "--data", "d", "--output_dir", "unused", "--use_cpu"]
        options, arguments = parse(finetune.COMMANDS[task_of(recipe)], argv)
        defaults = vars(options) | vars(arguments)
        for option in ("learning_rate", "num_train_epochs", "weight_decay", "min_scale"):
            assert defaults[option] == values.get(option, defaults[option]), (name, option)
    values = yaml.safe_load(next(path for path in RECIPES if path.stem == "pretrain").read_text())
    arguments = BlipTrainingArguments("unused", use_cpu=True)
    for option in ("learning_rate", "weight_decay", "warmup_steps", "decay_rate", "num_train_epochs"):
        assert getattr(arguments, option) == values[option]


def test_multi_word_answers_and_the_question_only_baseline(pretrained, tmp_path, capsys, caplog):
    write_image(tmp_path / "a.png")
    records = [
        {"image": "a.png", "question": "what is it", "question_id": 1, "answer": ["red", "blue"]},
        {"image": "a.png", "question": "what colour", "question_id": 2, "answer": ["red"]},
        {"image": "a.png", "question": "what else", "question_id": 3, "answer": ["red"]},
    ]
    source = write_json(tmp_path / "questions.json", records)
    answers = write_json(tmp_path / "answers.json", ["blue, red", "red"])
    flags = ["--answer_sets", "--blind", "--answer_list", answers]
    argv = ["vqa", "--model", pretrained, *TRAINING, "--data", source, "--eval_data", source, *flags]
    argv += ["--per_device_train_batch_size", "3", "--output_dir", tmp_path / "out"]
    metrics = run("finetune", capsys, *argv)
    assert f"evaluated on {source}, which it is also trained on" in caplog.text
    assert metrics["eval_accuracy_of_most_common_answer"] == pytest.approx(2 / 3)
    # With --blind, all images are equal, so a missing file does not matter.
    (tmp_path / "a.png").unlink()
    again = run("evaluate", capsys, "vqa", "--model", tmp_path / "out", "--data", source, *flags, "--no_progress")
    assert again["accuracy"] == pytest.approx(metrics["eval_accuracy"])


def test_questions_without_answers_need_an_output(pretrained, tmp_path, capsys):
    write_image(tmp_path / "a.png")
    source = write_json(tmp_path / "test.json", [{"image": "a.png", "question": "what is it"}])
    model = BlipForQuestionAnswering.from_pretraining(BlipForPreTraining.from_pretrained(pretrained))
    model.save_pretrained(tmp_path / "vqa")
    BlipProcessor.from_pretrained(pretrained).save_pretrained(tmp_path / "vqa")
    argv = ["evaluate", "vqa", "--model", str(tmp_path / "vqa"), "--data", str(source), "--no_progress"]
    assert main(argv) == 2
    assert "None of the 1 questions" in capsys.readouterr().err
    output = tmp_path / "answers.json"
    assert run(*argv[:1], capsys, *argv[1:], "--output", output) == {
        "num_answered": 1,
        "num_skipped": 0,
        "num_skipped_by_reason": {},
    }
    assert [record["image"] for record in json.loads(output.read_text())] == ["a.png"]
    # The answered question of this set cannot be used.
    lost = {"image": "lost.png", "question": "what is it", "answer": "red"}
    write_json(source, [lost, {"image": "a.png", "question": "what is it"}])
    assert main(argv) == 2
    assert "No question" in capsys.readouterr().err
    for data, eval_data in ((source, source), ("scenes:4", tmp_path / "test2.json")):
        write_json(tmp_path / "test2.json", [{"image": "a.png", "question": "what"}])
        write_json(source, [{"image": "a.png", "question": "what"}])
        train = ["finetune", "vqa", "--model", pretrained, "--data", data, "--eval_data", eval_data]
        assert main([*map(str, train), "--output_dir", str(tmp_path / "out"), "--use_cpu"]) == 2
        assert "None of the 1 questions" in capsys.readouterr().err


def test_vqa_recipe_does_not_evaluate_on_training_data():
    recipe = next(path for path in RECIPES if path.stem == "vqa")
    options, _ = parse(finetune.COMMANDS["vqa"], ["--config", str(recipe), "--output_dir", "x", "--use_cpu"])
    assert "vqa_val.json" in options.data
    assert options.eval_data is None


def test_the_best_model_by_the_metric_of_the_task_is_saved_and_evaluated(pretrained, tmp_path, capsys):
    argv = ["nlvr2", "--model", pretrained, *TRAINING, "--max_steps", 3, "--learning_rate", "1e-2"]
    argv += ["--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1]
    argv += ["--load_best_model_at_end", "--metric_for_best_model"]
    metrics = run("finetune", capsys, *argv, "accuracy", "--output_dir", tmp_path / "out")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert metrics["eval_accuracy"] == state["best_metric"]
    best = load_file(f"{state['best_model_checkpoint']}/model.safetensors")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(best[name], saved[name]) for name in saved)
    assert main(["finetune", *map(str, argv), "accuracies", "--output_dir", str(tmp_path / "other")]) == 2
    assert "metric_for_best_model='accuracies' is unknown. Pass one of loss, accuracy" in capsys.readouterr().err


LIST, KARPATHY = '[{"image": "a.png"}]', '{"images": []}'


@pytest.mark.parametrize(
    ("options_class", "content", "fields", "is_warned_of"),
    [
        (vqa.FinetuneOptions, LIST, {}, True),
        (vqa.FinetuneOptions, KARPATHY, {}, True),
        (caption.FinetuneOptions, LIST, {}, True),
        (caption.FinetuneOptions, KARPATHY, {}, False),
        (caption.FinetuneOptions, KARPATHY, {"eval_split": "train"}, True),
    ],
)
def test_evaluating_on_training_data_warns(options_class, content, fields, is_warned_of, tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(content)
    data = [str(tmp_path / "b.json"), str(tmp_path / "a.json"), "scenes"]
    same = str(tmp_path / "sub" / ".." / "a.json")
    warn_about_training_data(options_class(model="model", data=data, eval_data=[same, "scenes"], **fields))
    assert (f"evaluated on {same}, which it is also trained on" in caplog.text) == is_warned_of
    caplog.clear()
    warn_about_training_data(options_class(model="model", data=data[:1], eval_data=[same], **fields))
    assert not caplog.text


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("caption", ["--metrics", "spice"], "'spice' needs Java"),
        ("caption", ["--metrics", "blue"], "metrics=['blue'] is unknown"),
        ("retrieval", ["--k_test", "0"], "k=0 is too small"),
        ("vqa", ["--answer_list", "lost.json"], "lost.json does not exist"),
        ("vqa", ["--answer_list", "answers.json", "--num_candidates", "0"], "num_candidates=0 is too small"),
    ],
)
def test_invalid_evaluation_options_raise_before_training(task, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    (tmp_path / "answers.json").write_text('["red"]')
    # The check precedes that of the model.
    assert main(["finetune", task, "--model", "lost", *TRAINING, "--output_dir", "out", *flags]) == 2
    assert message in capsys.readouterr().err


def test_unrequested_evaluation_is_not_checked(pretrained, tmp_path, capsys):
    argv = ["vqa", "--model", pretrained, *TRAINING, "--answer_list", "lost.json", "--output_dir", tmp_path]
    start = argv.index("--eval_data")
    assert run("finetune", capsys, *argv[:start], *argv[start + 2 :])["train_loss"] > 0


def test_captions_and_rankings_are_written_with_source_ids(pretrained, tmp_path, capsys):
    names = ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000000042.jpg"]
    for name in names:
        write_image(tmp_path / name)
    write_json(tmp_path / "list.json", [{"image": name, "caption": ["a red square"]} for name in names])
    source = ["--data", tmp_path / "list.json", "--device", "cpu", "--no_progress", "--output", tmp_path / "out.json"]
    whole, processor = BlipForPreTraining.from_pretrained(pretrained), BlipProcessor.from_pretrained(pretrained)
    for task, model in (("caption", whole.export_captioner()), ("retrieval", whole.export_retriever())):
        model.save_pretrained(tmp_path / task)
        processor.save_pretrained(tmp_path / task)
        run("evaluate", capsys, task, "--model", tmp_path / task, *source, *SHORT_TESTS.get(task, []))
        written = json.loads((tmp_path / "out.json").read_text())
        ids = [record["image_id"] for record in written] if task == "caption" else written["image_ids"]
        assert ids == [391895, 42]


def test_a_fitted_temperature_is_written_into_the_checkpoint(pretrained, tmp_path, capsys):
    model = BlipForPreTraining.from_pretrained(pretrained).export_retriever()
    model.save_pretrained(tmp_path)
    BlipProcessor.from_pretrained(pretrained).save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    assert before["itm_temperature"] == 0.07
    argv = ["retrieval", "--model", tmp_path, "--data", "scenes", "--num_scenes", "12", "--score", "posterior"]
    argv += ["--device", "cpu", "--no_progress"]
    fitted = run("evaluate", capsys, *argv, "--fit_temperature")
    assert fitted["itm_temperature"] != 0.07
    assert json.loads((tmp_path / "config.json").read_text()) == {
        **before,
        "itm_temperature": fitted["itm_temperature"],
    }
    assert run("evaluate", capsys, *argv) == fitted
    assert {"r_mean", "itc_r_mean", "paper_r_mean"} <= fitted.keys()


def test_a_temperature_is_not_fitted_without_a_folder_to_write_to(capsys):
    argv = ["evaluate", "retrieval", "--model", "some/retriever", "--data", "scenes", "--fit_temperature"]
    assert main(argv) == 2
    assert "--fit_temperature writes into the checkpoint, but some/retriever is not a local folder" in (
        capsys.readouterr().err
    )


def test_a_fine_tuned_captioner_is_saved_with_its_prompt_and_lengths(pretrained, tmp_path, capsys):
    own = ["--prompt", "a photo of ", "--max_length", "12"]
    run(
        "finetune",
        capsys,
        "caption",
        "--model",
        pretrained,
        *TRAINING,
        "--output_dir",
        tmp_path,
        *own,
        *SHORT["caption"],
    )
    settings = BlipProcessor.from_pretrained(tmp_path).caption_settings
    assert settings == CaptionSettings(prompt="a photo of ", max_length=12)


@pytest.mark.parametrize("task", ["vqa", "nlvr2"])
def test_vqa_and_nlvr2_sources_must_be_files(task, pretrained, tmp_path, capsys):
    def help_of(*words):
        assert main([*words, "--help"]) == 0
        return " ".join(capsys.readouterr().out.split())

    for command in ("finetune", "evaluate"):
        assert PAIRS_HELP in help_of(command, "caption")
        assert PAIRS_HELP not in help_of(command, task)
        assert "split" not in help_of(command, task)
    argv = ["finetune", task, "--model", pretrained, "--data", tmp_path, "--output_dir", tmp_path / "out", "--use_cpu"]
    assert main(list(map(str, argv))) == 2
    assert f"{tmp_path} is a folder. Pass the path of a JSON file" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["nowhere", "here/not_there", "./nowhere"])
@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_missing_model_raises_before_any_work(command, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    argv = [command, "vqa", "--model", source, "--data", "scenes"]
    assert main(argv + (["--output_dir", "out", "--use_cpu"] if command == "finetune" else [])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"blip-hf {command}: error: {source} does not exist. Pass a folder with a saved model, or a model id such as"
        " owner/name."
    )


def test_python_api_uses_the_recipe_of_the_command(pretrained, tmp_path):
    options = nlvr2.FinetuneOptions(model=str(pretrained), data=["scenes:8"], eval_data=["scenes:4"])
    arguments = BlipFinetuningArguments.for_task(
        "nlvr2", output_dir=tmp_path, max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    assert arguments.learning_rate == TASK_RECIPES["nlvr2"]["learning_rate"]
    assert nlvr2.finetune(options, arguments)["eval_num_pairs"] == 4


@pytest.mark.parametrize(
    ("data", "eval_data", "expected"),
    [
        (["scenes"], ["scenes"], (10_000, 0.0, 500)),
        (["scenes:20000:0.5"], ["scenes:7"], (20_000, 0.5, 7)),
    ],
)
@pytest.mark.parametrize("options_class", [caption.FinetuneOptions, vqa.FinetuneOptions, PretrainOptions])
def test_evaluation_scenes_follow_the_training_scenes(options_class, data, eval_data, expected):
    options = options_class(model="unused", data=data, eval_data=eval_data)
    scenes, eval_scenes = options.training_source().scenes(48), options.evaluation_source().scenes(48)
    assert (len(scenes), scenes.noise_rate, len(eval_scenes)) == expected
    assert (scenes.start, eval_scenes.start, eval_scenes.image_size) == (0, len(scenes), 48)


def test_scenes_source_equals_the_scenes_option():
    by_option = (
        caption.EvaluateOptions(model="m", data=["scenes"], first_scene=3, num_scenes=5).evaluation_source().scenes(32)
    )
    by_number = caption.EvaluateOptions(model="m", data=["scenes:5"], first_scene=3).evaluation_source().scenes(32)
    assert by_number.captions() == by_option.captions()


@pytest.mark.parametrize(
    ("options_class", "config_class", "names"),
    [
        (PretrainOptions, BlipPreTrainingConfig, pretrain_task.CONFIGURED),
        (retrieval.FinetuneOptions, BlipRetrievalTrainingConfig, retrieval.CONFIGURED),
    ],
)
def test_help_shows_the_default_of_the_configuration(options_class, config_class, names):
    defaults = {option.name: option.default for option in fields(config_class)}
    for name in names:
        option = options_class.__dataclass_fields__[name.removesuffix("_init_value")]
        assert option.default is None
        if defaults[name] is not None:
            value = defaults[name] if isinstance(defaults[name], bool) else f"{defaults[name]:g}"
            assert f"(default: {value}" in option.metadata["help"], name


def test_options_of_all_tasks_are_imported_without_torch():
    code = "import sys; from blip_hf.tasks import caption, nlvr2, pretrain, retrieval, vqa; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "transformers", "datasets", "numpy", "PIL"} & set(printed.split())
