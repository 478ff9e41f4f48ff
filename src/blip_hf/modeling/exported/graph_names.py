# SPDX-License-Identifier: BSD-3-Clause
"""Names of the graphs of an exported model, which are names of its files."""

IMAGE_ENCODER = "image_encoder"
"""Pixels to states."""
IMAGE_MEMORY = "image_memory"
"""States of images to keys and values of each layer of the text model, once for all texts and beams."""
TEXT_ENCODER = "text_encoder"
"""Texts alone to the state of [CLS]."""
GROUNDED_ENCODER = "grounded_encoder"
"""Texts that read a memory to states."""
QUESTION_MEMORY = "question_memory"
"""States of questions to keys and values of the answer decoder."""
TEXT_DECODER = "text_decoder"
"""Tokens that read a memory, and keys and values of earlier tokens, to logits."""

__all__ = ["GROUNDED_ENCODER", "IMAGE_ENCODER", "IMAGE_MEMORY", "QUESTION_MEMORY", "TEXT_DECODER", "TEXT_ENCODER"]
