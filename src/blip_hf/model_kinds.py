# SPDX-License-Identifier: BSD-3-Clause
"""What a model card says about each class: its task on the Hub, its tags, and code that runs it."""

from dataclasses import dataclass


_OPEN = """from PIL import Image
from transformers import {opened}, BlipProcessor

checkpoint = "{checkpoint}"
processor = BlipProcessor.from_pretrained(checkpoint{options})
model = {opened}.from_pretrained(checkpoint{options})
image = Image.open("photo.jpg").convert("RGB")
"""
_CAPTION = """inputs = processor(image, {prompt}return_tensors="pt")
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))"""
_ANSWER = """inputs = processor(image, "how many dogs are there?", return_tensors="pt")
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))"""
_MATCH = """inputs = processor(image, "a dog on a beach", return_tensors="pt")
print(model(**inputs).itm_score.softmax(-1)[:, 1])  # probability that the text describes the image"""
_EXPORT = """retriever = model.export_retriever()
inputs = processor(image, "a dog on a beach", return_tensors="pt")
print(retriever(**inputs).itm_logits.softmax(-1)[:, 1])  # probability that the text describes the image"""
_COMPARE = """inputs = processor(image, ["a dog on a beach", "two boats"], padding=True, return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(-1))  # probability of each text"""
_REASON = """pixel_values = processor(images=[image, image], return_tensors="pt").pixel_values[None]  # left and right image
inputs = processor(text="both images show a dog", return_tensors="pt")
print(model(pixel_values, **inputs).logits.softmax(-1)[:, 1])  # probability that the sentence is true"""


@dataclass(frozen=True)
class ModelKind:
    """A model class on the Hub: what it does, `pipeline_tag`, tags, and the lines that use it."""

    description: str
    task: str
    tags: tuple[str, ...]
    use: str
    needs_code: bool = False

    def snippet(self, model_class: str, checkpoint: str, prompt: str = "") -> str:
        """Code that opens the checkpoint in plain transformers and runs it on an image."""
        options = ", trust_remote_code=True" if self.needs_code else ""
        opened = "AutoModel" if self.needs_code else model_class
        opening = _OPEN.format(opened=opened, checkpoint=checkpoint, options=options)
        return opening + self.use.replace("{prompt}", f'"{prompt.strip()}", ' if prompt.strip() else "")


KINDS = {
    "BlipForConditionalGeneration": ModelKind(
        "Generates captions of images.", "image-text-to-text", ("image-captioning",), _CAPTION
    ),
    "BlipForQuestionAnswering": ModelKind(
        "Answers questions about images.", "visual-question-answering", ("visual-question-answering",), _ANSWER
    ),
    "BlipForImageTextRetrieval": ModelKind(
        "Compares images with texts, for retrieval.",
        "zero-shot-image-classification",
        ("image-text-retrieval", "image-text-matching"),
        _MATCH,
    ),
    "BlipModel": ModelKind(
        "Compares images with texts, as CLIP does.", "zero-shot-image-classification", ("clip",), _COMPARE
    ),
    "BlipForPreTraining": ModelKind(
        "Pre-trained with the contrastive, matching and captioning objectives, to fine-tune for a task.",
        "feature-extraction",
        ("pre-training", "custom_code"),
        _EXPORT,
        needs_code=True,
    ),
    "BlipForRetrievalTraining": ModelKind(
        "Compares images with texts, with the state to continue its training.",
        "feature-extraction",
        ("image-text-retrieval", "custom_code"),
        _EXPORT,
        needs_code=True,
    ),
    "BlipForVisualReasoning": ModelKind(
        "Decides whether a sentence is true of two images (NLVR2).",
        "visual-question-answering",
        ("nlvr2", "visual-reasoning", "custom_code"),
        _REASON,
        needs_code=True,
    ),
}

__all__ = ["KINDS", "ModelKind"]
