# SPDX-License-Identifier: BSD-3-Clause
"""Questions and answers in the published formats."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from blip_hf.data.readers.vqa import load_vqa, most_common_answers
from blip_hf.data.scenes import Scenes, SceneVqa
from blip_hf.data.vqa import BlipVqaCollator, VqaDataset
from tests.support.files import write_json
from tests.support.images import write_image
from tests.support.vocabularies import make_processor


RECORD = {
    "dataset": "vqa",
    "image": "a.jpg",
    "question": "What is it?",
    "question_id": 7,
    "answer": ["a", "b", "a", "a"],
}
VG_RECORD = {"dataset": "vg", "image": "b.jpg", "question": "Where?", "question_id": 8, "answer": "here"}


def write(folder: Path, content, name="questions.json") -> Path:
    return write_json(folder / name, content)


# BLIP's lists


def test_answer_weights_are_shares_of_votes_and_a_fifth_for_visual_genome(tmp_path):
    path = write(tmp_path, [RECORD, VG_RECORD])
    assert load_vqa(path)[:] == {
        "image": [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")],
        "question": ["What is it?", "Where?"],
        "question_id": [7, 8],
        "answers": [["a", "b", "a", "a"], ["here"]],
        "weights": [[0.25] * 4, [0.2]],
    }


def test_a_visual_genome_record_may_have_several_answers_or_none(tmp_path):
    write_image(tmp_path / "b.jpg")
    asked = {name: value for name, value in VG_RECORD.items() if name != "answer"}
    questions = load_vqa(write(tmp_path, [{**asked, "answer": ["here", "there"]}, asked]))
    assert questions["weights"][:] == [[0.1, 0.1], []]
    batch = BlipVqaCollator(make_processor())([VqaDataset(questions)[i] for i in range(2)])
    assert_close(batch["answer_weights"], torch.tensor([0.1, 0.1]))
    assert batch["answers_per_question"].tolist() == [2, 0]


def test_each_dataset_may_have_its_own_image_root(tmp_path):
    paths = [write(tmp_path, [RECORD], "vqa.json"), write(tmp_path, [VG_RECORD], "vg.json")]
    roots = {"vqa": "/coco", "vg": "/genome"}
    assert load_vqa(paths, image_root=roots)["image"][:] == ["/coco/a.jpg", "/genome/b.jpg"]
    with pytest.raises(ValueError, match=r"vg.json, record 0: its data set is 'vg', and image_root has 'vqa'. Add"):
        load_vqa(paths, image_root={"vqa": "/coco"})


def test_test_sets_have_no_answers(tmp_path):
    asked = {name: value for name, value in RECORD.items() if name != "answer"}
    questions = load_vqa(write(tmp_path, [asked]))
    assert questions[0]["answers"] == questions[0]["weights"] == []


def test_answer_set_is_joined_into_one_answer(tmp_path):
    path = write(tmp_path, [{**RECORD, "answer": ["vase", "bottle", "vase"]}])
    record = load_vqa(path, answer_lists="set")[0]
    assert (record["answers"], record["weights"]) == (["bottle, vase"], [1.0])
    with pytest.raises(ValueError, match="answer_lists='all' is unknown; pass 'votes' or 'set'"):
        load_vqa(path, answer_lists="all")


def test_ids_of_mixed_types_become_strings(tmp_path):
    path = write(tmp_path, [RECORD, {**VG_RECORD, "question_id": "x1"}])
    assert load_vqa(path)["question_id"][:] == ["7", "x1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{**RECORD, "answer": []}],
            r"questions.json, record 0: field 'answer' is \[\], expected str or list",
        ),
        ([{**RECORD, "answer": [1]}], "record 0: field 'answer' is list of int, expected str or list of str"),
        ([{**RECORD, "question": None}], "record 0: field 'question' is None, expected str"),
        ([{"question": "?"}], r"record 0: field 'image' is missing \(there are: question\)"),
        ([5], "record 0 is a int, expected an object with 'question'"),
        ([], "contains an empty list, expected a list of .*Visual Genome"),
        ({"annotations": []}, "contains an object with annotations, expected a list of"),
    ],
)
def test_invalid_lists_raise(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_vqa(write(tmp_path, content))


# VQA v2 and Visual Genome


VQA_QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "How many?", "question_id": 421},
        {"image_id": 9, "question": "Why?", "question_id": 90},
    ],
}
VQA_ANNOTATIONS = {
    "annotations": [
        {"question_id": 90, "image_id": 9, "answers": [{"answer": "why not", "answer_id": 1}]},
        {"question_id": 421, "image_id": 42, "answers": [{"answer": a, "answer_id": i} for i, a in enumerate("2223")]},
    ]
}


def test_vqa_is_read_in_its_published_format(tmp_path):
    questions = load_vqa(
        write(tmp_path, VQA_QUESTIONS),
        annotations=write(tmp_path, VQA_ANNOTATIONS, "annotations.json"),
        image_root="/coco/val2014",
    )
    assert questions[0] == {
        "image": "/coco/val2014/COCO_val2014_000000000042.jpg",
        "question": "How many?",
        "question_id": 421,
        "answers": ["2", "2", "2", "3"],
        "weights": [0.25] * 4,
    }
    assert questions[1]["answers"] == ["why not"]


def test_vqa_test_splits_share_one_image_folder(tmp_path):
    path = write(tmp_path, {**VQA_QUESTIONS, "data_subtype": "test-dev2015"})
    record = load_vqa(path)[1]
    assert record["image"] == str(tmp_path / "COCO_test2015_000000000009.jpg")
    assert record["answers"] == []


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"annotations": VQA_ANNOTATIONS["annotations"][:1]}, "question 0: .*has no answers to question_id 421"),
        ({"annotations": [{"question_id": 90}]}, "annotation 0: field 'answers' is missing"),
        ({"annotations": [{"question_id": 90, "answers": [{}]}]}, "annotation 0, answer 0: field 'answer' is missing"),
        ([], "contains an empty list, expected VQA's"),
    ],
)
def test_invalid_annotations_raise(tmp_path, annotations, message):
    path = write(tmp_path, VQA_QUESTIONS)
    with pytest.raises(ValueError, match=message):
        load_vqa(path, annotations=write(tmp_path, annotations, "annotations.json"))


def test_annotations_of_another_kind_of_file_raise(tmp_path):
    with pytest.raises(ValueError, match="annotations require VQA's"):
        load_vqa(write(tmp_path, [RECORD]), annotations="annotations.json")


def test_visual_genome_is_found_in_both_of_its_folders(tmp_path):
    for folder, name in (("VG_100K", "1.jpg"), ("VG_100K_2", "2.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    pair = {"qa_id": 5, "question": "What colour?", "answer": "Red."}
    path = write(tmp_path, [{"id": i, "qas": [{**pair, "qa_id": i}] * i} for i in (1, 2, 3)])
    questions = load_vqa(path)
    folders = [Path(image).relative_to(tmp_path).as_posix() for image in questions["image"]]
    assert folders == ["VG_100K/1.jpg", *["VG_100K_2/2.jpg"] * 2, *["3.jpg"] * 3]
    assert questions[0]["answers"] == ["Red."]
    assert questions[0]["weights"] == [0.2]
    with pytest.raises(ValueError, match="record 0, qas 0: field 'answer' is missing"):
        load_vqa(write(tmp_path, [{"id": 1, "qas": [{"qa_id": 1, "question": "?"}]}]))


# VizWiz, TextVQA and other lists


VIZWIZ = [
    {
        "image": f"VizWiz_val_{i:08d}.jpg",
        "question": "What is it?",
        "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in ("can", "can", "tin")],
        "answer_type": "other",
        "answerable": 1,
    }
    for i in range(2)
]


def test_vizwiz_is_read_in_its_published_format(tmp_path, caplog):
    path = write(tmp_path, VIZWIZ, "val.json")
    questions = load_vqa(path, image_root="/vizwiz/val")
    assert questions[1] == {
        "image": "/vizwiz/val/VizWiz_val_00000001.jpg",
        "question": "What is it?",
        "question_id": "VizWiz_val_00000001.jpg",
        "answers": ["can", "can", "tin"],
        "weights": [1 / 3] * 3,
    }
    assert caplog.text.count("not read") == 1
    assert "val.json: not read: answer_type, answerable, answers.answer_confidence." in caplog.text
    unanswered = [{"image": record["image"], "question": record["question"]} for record in VIZWIZ]
    assert load_vqa(write(tmp_path, unanswered))["answers"][:] == [[], []]


def test_questions_without_ids_about_one_image_are_numbered(tmp_path, caplog):
    record = {"image": "a.jpg", "question": "What?", "answer": "a"}
    assert load_vqa(write(tmp_path, [record, record]))["question_id"][:] == [0, 1]
    assert load_vqa(write(tmp_path, [{**record, "question_id": 1}, record]))["question_id"][:] == [1]
    assert "skipped 1 bad_record, the first record 1 (" in caplog.text
    assert "record 1: field 'question_id' is missing" in caplog.text


def test_image_ids_that_are_text_name_files(tmp_path):
    (tmp_path / "0054c9.png").touch()
    records = [
        {"image_id": image_id, "question": "What?", "question_id": i, "answers": ["a", "b"]}
        for i, image_id in enumerate(("0054c9", "0ab3f1", "x.webp"))
    ]
    images = [str(tmp_path / name) for name in ("0054c9.png", "0ab3f1.jpg", "x.webp")]
    assert load_vqa(write(tmp_path, {"dataset_name": "textvqa", "data": records}))["image"][:] == images
    official = {"data_subtype": "val2014", "questions": records}
    assert load_vqa(write(tmp_path, official), image_root=tmp_path)["image"][:] == images
    del official["data_subtype"]
    assert load_vqa(write(tmp_path, official))["image"][:] == images


def test_abstract_scenes_have_their_published_file_names(tmp_path):
    path = write(tmp_path, {**VQA_QUESTIONS, "data_type": "abstract_v002", "data_subtype": "val2015"})
    assert load_vqa(path, image_root="/scenes")["image"][:] == [
        "/scenes/abstract_v002_val2015_000000000042.png",
        "/scenes/abstract_v002_val2015_000000000009.png",
    ]


def test_fields_that_are_not_read_are_named_once_for_a_file(tmp_path, caplog):
    load_vqa(write(tmp_path, [{**RECORD, "rationale": "because", "source": "x"}] * 3))
    assert caplog.text.count("not read: rationale, source.") == 1
    caplog.clear()
    annotations = [
        {**record, "answer_type": "other", "question_type": "why"} for record in VQA_ANNOTATIONS["annotations"]
    ]
    load_vqa(write(tmp_path, VQA_QUESTIONS), annotations=write(tmp_path, {"annotations": annotations}, "a.json"))
    load_vqa(write(tmp_path, [RECORD, VG_RECORD]))
    assert "not read" not in caplog.text  # all fields of these formats are known
    with_note = {**VQA_QUESTIONS, "questions": [{**question, "note": ""} for question in VQA_QUESTIONS["questions"]]}
    load_vqa(write(tmp_path, with_note))
    assert "not read: note." in caplog.text


# Scenes, and real photos


def test_scenes_have_exact_answers():
    scenes = Scenes(4, start=10)
    questions = load_vqa(scenes)
    assert isinstance(questions, SceneVqa)
    expected = [pair for i in range(4) for pair in scenes.questions(i)]
    assert [(record["question"], *record["answers"]) for record in questions] == [
        (pair["question"], pair["answer"]) for pair in expected
    ]
    assert [record["question_id"] for record in questions] == list(range(len(expected)))
    assert questions[-1]["image"].tobytes() == scenes[3]["image"].tobytes()
    assert questions.answers() == [[pair["answer"]] for pair in expected]


def test_counting_answers_does_not_open_images(tmp_path):
    records = [{**RECORD, "answer": answers} for answers in (["x", "y"], ["y"], ["z", "x", "y"])]
    questions = load_vqa(write(tmp_path, records))
    assert most_common_answers(questions) == ["y", "x", "z"]
    assert most_common_answers(list(questions), num_answers=1) == ["y"]
    scenes = SceneVqa(Scenes(50))
    assert set(most_common_answers(scenes)) == {answer for (answer,) in scenes.answers()}


def test_daquar_is_read(data_root):
    folder = data_root / "daquar"
    questions = load_vqa(folder / "val.json", answer_lists="set")
    assert len(questions) == 1755
    assert all(len(answers) == 1 for answers in questions["answers"])
    known = set(json.loads((folder / "answer_list.json").read_text()))
    # 1,581 of one word and one with the same word twice; the others have several words.
    assert sum(answer in known for (answer,) in questions["answers"]) == 1582
    assert VqaDataset(questions)[0]["image"].size == (224, 168)
