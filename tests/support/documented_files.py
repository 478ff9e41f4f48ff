# SPDX-License-Identifier: BSD-3-Clause
"""Small stand-ins for the checkpoints and files that code in the documentation names, under their names."""

from pathlib import Path
from typing import Any

from transformers import BertConfig, BertModel, PreTrainedModel, ViTConfig, ViTModel

from blip_hf import (
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForVisualReasoning,
    Rule,
    refilter,
    restore_original_checkpoint,
)
from blip_hf.capfilt.engine import CapFilt
from blip_hf.capfilt.runner import run_capfilt
from blip_hf.data.scenes import Scenes
from tests.support.files import write_json, write_json_lines, write_tar
from tests.support.images import encoded_image, write_image
from tests.support.tiny_models import (
    TEXT,
    VISION,
    tiny_capfilt,
    tiny_model_for,
    tiny_nlvr2_config,
    tiny_pretraining_config,
)


CAPTIONERS = (
    "Salesforce/blip-image-captioning-base",
    "runs/caption",
    "runs/captioner-int8",
    "runs/demo/captioner",
    "runs/mine",
)
MATCHERS = (
    "Salesforce/blip-itm-base-coco",
    "runs/demo/retriever",
    "runs/matcher-bf16",
    "runs/retrieval",
)
VQA_MODELS = ("Salesforce/blip-vqa-base", "runs/vqa")
ORIGINALS = {
    "model_base.pth": "runs/demo",
    "model_base_caption_capfilt_large.pth": "runs/demo/captioner",
    "model_base_retrieval_coco.pth": "runs/demo/retriever",
    "model_base_vqa_capfilt_large.pth": "runs/vqa",
}
IMAGES = (
    "1.jpg",
    "2.jpg",
    "boat.jpg",
    "dog.jpg",
    "rex.jpg",
    "tom.jpg",
    "coco/val2014/1.jpg",
    "nocaps/1.jpg",
    "nlvr2/images/dev/dev-0-0-img0.png",
    "nlvr2/images/dev/dev-0-0-img1.png",
)


def write_documented_files(root: Path) -> None:
    """Writes checkpoints, images, annotations, tars and a CapFilt run into a folder, which is the current one."""
    _write_checkpoints(root)
    for number, name in enumerate(IMAGES):
        write_image(root / name, (25 * number, 80, 40))
    (root / "photos").mkdir()
    for number, scene in enumerate(Scenes(6)):
        scene["image"].save(root / "photos" / f"{number:03}.png")
    _write_annotations(root)
    for number in range(2):
        members = [(f"{number}.png", encoded_image((number, 0, 9))), (f"{number}.txt", b"a red ring")]
        write_tar(root / "web" / f"{number:05}.tar", members)
    engine = CapFilt.from_pretrained(root / "runs/caption", root / "runs/retrieval")
    run_capfilt(engine, "scenes:4", root / "runs/clean", rule=Rule(threshold=0.0))
    refilter(root / "runs/clean", Rule(threshold=0.0), root / "runs/best", "webdataset")


def _write_checkpoints(root: Path) -> None:
    captioner, processor, matcher, _ = tiny_capfilt()
    ids = processor.config_token_ids()
    models: dict[str, PreTrainedModel] = dict.fromkeys(CAPTIONERS, captioner) | dict.fromkeys(MATCHERS, matcher)
    # Equal widths, which transformers needs for VQA.
    vqa = tiny_model_for(BlipForQuestionAnswering, processor, hidden_size=16)
    models |= dict.fromkeys(VQA_MODELS, vqa)
    models["runs/nlvr2"] = BlipForVisualReasoning(_with_text(tiny_nlvr2_config(), ids))
    models["runs/demo"] = BlipForPreTraining(_with_text(tiny_pretraining_config(), ids))
    models["google/vit-base-patch16-224"] = ViTModel(
        ViTConfig(**VISION | {"image_size": 224}), add_pooling_layer=False
    )
    models["bert-base-uncased"] = BertModel(BertConfig(**TEXT | {"vocab_size": len(processor.tokenizer)}))
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    for name, folder in ORIGINALS.items():
        restore_original_checkpoint(root / folder, root / name)


def _with_text(config: Any, ids: dict[str, int]) -> Any:
    for name, value in ids.items():
        setattr(config.text_config, name, value)
    return config


def _write_annotations(root: Path) -> None:
    pairs = [{"image": f"{i % 2 + 1}.jpg", "caption": f"a {'rs'[i % 2]}", "image_id": i % 2} for i in range(8)]
    for name in ("train.json", "val.json", "pairs.json", "human.json"):
        write_json(root / name, pairs)
    images = [
        {
            "filename": "1.jpg",
            "filepath": "val2014",
            "cocoid": number,
            "split": split,
            "sentences": [{"raw": "a ring"}],
        }
        for number, split in enumerate(("train", "test"))
    ]
    write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    nocaps = {"id": 0, "file_name": "1.jpg", "domain": "out-domain"}
    caption = {"image_id": 0, "caption": "a ring"}
    write_json(root / "nocaps_val_4500_captions.json", {"images": [nocaps], "annotations": [caption]})
    questions = [{"image": "1.jpg", "question": "a?", "question_id": 1, "answer": ["a"], "dataset": "vqa"}]
    for name in ("vqa_train.json", "vqa_val.json"):
        write_json(root / name, questions)
    write_json(root / "daquar/train.json", [questions[0] | {"image": "../1.jpg"}, questions[0] | {"image": "2.jpg"}])
    write_image(root / "daquar/2.jpg")
    sentence = {"sentence": "a ring", "label": "True", "identifier": "dev-0-0-0"}
    write_json(root / "dev.json", [sentence])
    write_json_lines(root / "msrvtt_test.jsonl", [{"clip_name": "video1", "caption": "a ring"}])
    write_image(root / "videos/video1/1.png")
