# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["blip_hf"]
# ///
"""The calls of LAVIS, `load_model_and_preprocess`, `generate`, `predict_answers` and `extract_features`, on blip_hf.

python examples/lavis_adapter.py blip_caption Salesforce/blip-image-captioning-base dog.jpg
python examples/lavis_adapter.py blip_feature_extractor Salesforce/blip-itm-base-coco dog.jpg "a dog"
"""

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipProcessor


class LavisModel(nn.Module):
    """A model with the methods of LAVIS. `samples` has `image` `(b, 3, height, width)` and `text_input`, `b` texts."""

    def __init__(self, model: nn.Module, processor: BlipProcessor) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    def _tokens(self, texts: str | list[str]) -> dict[str, Tensor]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = self.processor(text=texts, padding=True, return_tensors="pt").to(self.model.device)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def generate(
        self, samples: dict[str, Any], *, use_nucleus_sampling: bool = False, num_captions: int = 1, **options: Any
    ) -> list[str]:
        """Captions of each image, without the prompt. `options`: `num_beams`, `max_length`, `min_length`, `top_p`."""
        prompt, images = "a picture of ", samples["image"]
        search = {"do_sample": True, "num_beams": 1, "top_p": 0.9} if use_nucleus_sampling else {"num_beams": 3}
        settings = {"max_length": 30, "min_length": 10, **search, **options, "num_return_sequences": num_captions}
        sequences = self.model.generate(images, **self._tokens([prompt] * len(images)), **settings)
        return self.processor.post_process_captions(sequences, prompt)

    @torch.no_grad()
    def predict_answers(self, samples: dict[str, Any], *, num_beams: int = 3, **_: Any) -> list[str]:
        """Generated answers to `text_input`."""
        tokens = self._tokens(samples["text_input"])
        tokens["pixel_values"] = samples["image"]
        sequences = self.model.generate(**tokens, num_beams=num_beams, max_length=10)
        return self.processor.batch_decode(sequences, skip_special_tokens=True)

    @torch.no_grad()
    def extract_features(self, samples: dict[str, Any], mode: str = "multimodal") -> SimpleNamespace:
        """States of all tokens and, for `image` and `text`, their projections of length 1, as `..._embeds_proj`."""
        if mode == "image":
            states = self.model.get_image_features(samples["image"]).last_hidden_state
            projected = normalize(self.model.vision_proj(states), dim=-1)
            return SimpleNamespace(image_embeds=states, image_embeds_proj=projected)
        tokens = self._tokens(samples["text_input"])
        if mode == "text":
            states = self.model.get_text_features(**tokens).last_hidden_state
            projected = normalize(self.model.text_proj(states), dim=-1)
            return SimpleNamespace(text_embeds=states, text_embeds_proj=projected)
        memory = self.model.get_image_memory(samples["image"])
        return SimpleNamespace(multimodal_embeds=self.model.get_multimodal_embeds(memory, **tokens))


MODELS = {
    "blip_caption": (BlipForConditionalGeneration, "Salesforce/blip-image-captioning-base"),
    "blip_vqa": (BlipForQuestionAnswering, "Salesforce/blip-vqa-base"),
    "blip_feature_extractor": (BlipForImageTextRetrieval, "Salesforce/blip-itm-base-coco"),
}


def load_model_and_preprocess(
    name: str, model_type: str | None = None, is_eval: bool = True, device: str = "cpu"
) -> tuple[LavisModel, dict[str, Callable], dict[str, Callable]]:
    """Returns the model, and the preprocessing of images and texts by split. `model_type` is a folder or model id."""
    model_class, checkpoint = MODELS[name]
    processor = BlipProcessor.from_pretrained(model_type or checkpoint)
    model = model_class.from_pretrained(model_type or checkpoint).to(device).train(not is_eval)
    images = {"eval": lambda image: processor(image, return_tensors="pt").pixel_values[0]}
    return LavisModel(model, processor), images, {"eval": lambda text: text.lower().strip()}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a model of `MODELS` on an image, with a question or a text."""
    name, checkpoint, image, *text = sys.argv[1:] if argv is None else argv
    model, images, texts = load_model_and_preprocess(name, checkpoint)
    samples = {"image": images["eval"](Image.open(image))[None], "text_input": texts["eval"](" ".join(text))}
    run = {"blip_caption": model.generate, "blip_vqa": model.predict_answers}.get(name, model.extract_features)
    print(run(samples))


if __name__ == "__main__":
    main()
