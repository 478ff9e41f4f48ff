# SPDX-License-Identifier: BSD-3-Clause
"""The Auto classes return the classes of this package only after registration."""

import transformers

from blip_hf import BlipForVisualReasoning
from tests.support.processes import run_code
from tests.support.tiny_models import TEXT, VISION, tiny_nlvr2_config


def test_auto_classes_are_registered_on_request(tmp_path):
    text_config = {key: value for key, value in TEXT.items() if key not in ("cls_token_id", "enc_token_id")}
    config = transformers.BlipConfig(text_config=text_config, vision_config=dict(VISION))
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    BlipForVisualReasoning(tiny_nlvr2_config()).save_pretrained(tmp_path / "reasoner")
    # In a subprocess, since registration is permanent.
    code = f"""
        import blip_hf
        from transformers import AutoModel, AutoModelForImageTextToText
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
        print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})).__module__)
        blip_hf.register_auto_classes()
        print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})).__module__)
        print(type(AutoModel.from_pretrained({str(tmp_path / "reasoner")!r})).__module__)
        print(len(PROCESSOR_MAPPING._extra_content))
    """
    before, after, nlvr2, num_processors = run_code(code).split()
    assert before.startswith("transformers.")
    assert after == "blip_hf.modeling.caption"
    assert num_processors == "0"  # registered processors have no effect
    assert nlvr2 == "blip_hf.modeling.nlvr2"
