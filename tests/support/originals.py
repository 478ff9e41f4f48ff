# SPDX-License-Identifier: BSD-3-Clause
"""Tiny checkpoints with the tensor names of the original code, written by hand, one per task."""

import torch

from tests.support.vocabularies import SPECIAL_TOKENS, make_tokenizer


VOCAB_SIZE = 40  # with [DEC] and [ENC]
VISION_WIDTH, TEXT_WIDTH, FEATURE_WIDTH = 128, 64, 8
HEAD_WIDTH = 64  # as in all released models
QUEUE_SIZE = 6
IMAGE_SIZE, PATCH_SIZE = 12, 4
TASKS = ("pretraining", "captioning", "matching", "retrieval", "vqa", "nlvr2")


def save_bert_tokenizer(folder):
    num_words = VOCAB_SIZE - 2 - len(SPECIAL_TOKENS)
    make_tokenizer([f"w{index}" for index in range(num_words)]).save_pretrained(folder)
    return folder


def original_state(task, seed=0):
    """Returns the `model` entry of a `.pth` file; tied tensors share their memory."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    def dense(name, width, inputs):
        return {f"{name}.weight": random(width, inputs), f"{name}.bias": random(width)}

    def norm(name, width):
        return {f"{name}.weight": random(width), f"{name}.bias": random(width)}

    def vision(root):
        width = VISION_WIDTH
        state = {f"{root}.cls_token": random(1, 1, width)}
        state[f"{root}.pos_embed"] = random(1, (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1, width)
        state[f"{root}.patch_embed.proj.weight"] = random(width, 3, PATCH_SIZE, PATCH_SIZE)
        state[f"{root}.patch_embed.proj.bias"] = random(width)
        for layer in range(2):
            block = f"{root}.blocks.{layer}"
            state |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
            state |= dense(f"{block}.attn.qkv", 3 * width, width) | dense(f"{block}.attn.proj", width, width)
            state |= dense(f"{block}.mlp.fc1", 4 * width, width) | dense(f"{block}.mlp.fc2", width, 4 * width)
        return state | norm(f"{root}.norm", width)

    def attention(name, encoder_width, self_name="self"):
        state = dense(f"{name}.{self_name}.query", TEXT_WIDTH, TEXT_WIDTH)
        state |= dense(f"{name}.{self_name}.key", TEXT_WIDTH, encoder_width)
        return state | dense(f"{name}.{self_name}.value", TEXT_WIDTH, encoder_width)

    def cross_attention(name, layer):
        if task != "nlvr2":
            encoder_width = TEXT_WIDTH if task == "vqa" and "decoder" in name else VISION_WIDTH
            return attention(name, encoder_width) | dense(f"{name}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
        state = attention(name, VISION_WIDTH, "self0") | attention(name, VISION_WIDTH, "self1")
        for dense_name in ("dense0", "dense1"):
            state |= dense(f"{name}.output.{dense_name}", TEXT_WIDTH, TEXT_WIDTH)
        if layer == 1:
            state |= dense(f"{name}.output.merge_layer", TEXT_WIDTH, 2 * TEXT_WIDTH)
        return state

    def text(root):
        state = {f"{root}.embeddings.position_ids": torch.arange(16)[None]}
        state[f"{root}.embeddings.word_embeddings.weight"] = random(VOCAB_SIZE, TEXT_WIDTH)
        state[f"{root}.embeddings.position_embeddings.weight"] = random(16, TEXT_WIDTH)
        state |= norm(f"{root}.embeddings.LayerNorm", TEXT_WIDTH)
        for index in range(2):
            layer = f"{root}.encoder.layer.{index}"
            state |= attention(f"{layer}.attention", TEXT_WIDTH)
            state |= dense(f"{layer}.attention.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            state |= norm(f"{layer}.attention.output.LayerNorm", TEXT_WIDTH)
            state |= cross_attention(f"{layer}.crossattention", index)
            state |= norm(f"{layer}.crossattention.output.LayerNorm", TEXT_WIDTH)
            state |= dense(f"{layer}.intermediate.dense", 96, TEXT_WIDTH)
            state |= dense(f"{layer}.output.dense", TEXT_WIDTH, 96) | norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)
        return state

    def decoder():
        head = "text_decoder.cls.predictions"
        state = text("text_decoder.bert") | dense(f"{head}.transform.dense", TEXT_WIDTH, TEXT_WIDTH)
        state |= norm(f"{head}.transform.LayerNorm", TEXT_WIDTH)
        state[f"{head}.bias"] = state[f"{head}.decoder.bias"] = random(VOCAB_SIZE)
        state[f"{head}.decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
        return state

    def projections(suffix=""):
        state = dense(f"vision_proj{suffix}", FEATURE_WIDTH, VISION_WIDTH)
        return state | dense(f"text_proj{suffix}", FEATURE_WIDTH, TEXT_WIDTH)

    state = vision("visual_encoder")
    if task in ("captioning", "vqa", "pretraining"):
        state |= decoder()
    if task != "captioning":
        state |= text("text_encoder")
    if task == "pretraining":
        # Encoder and decoder share all tensors except self-attention.
        for name in state:
            if name.startswith("text_encoder.") and ".attention." not in name:
                state[name] = state[name.replace("text_encoder.", "text_decoder.bert.")]
    if task == "nlvr2":
        state |= dense("cls_head.0", TEXT_WIDTH, TEXT_WIDTH) | dense("cls_head.2", 2, TEXT_WIDTH)
    if task in ("pretraining", "matching", "retrieval"):
        state |= projections() | dense("itm_head", 2, TEXT_WIDTH)
    if task in ("pretraining", "retrieval"):
        state |= vision("visual_encoder_m") | text("text_encoder_m") | projections("_m")
        state["temp"] = torch.tensor(0.031)
        state["image_queue"], state["text_queue"] = (
            random(FEATURE_WIDTH, QUEUE_SIZE),
            random(FEATURE_WIDTH, QUEUE_SIZE),
        )
        pointer = torch.tensor([4])
        state |= {"queue_ptr": pointer} if task == "pretraining" else {"ptr_queue": pointer}
    if task == "retrieval":
        state["idx_queue"] = torch.arange(QUEUE_SIZE)[None] - 100
    return state
