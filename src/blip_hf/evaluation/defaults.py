# SPDX-License-Identifier: BSD-3-Clause
"""Defaults that evaluation functions and command-line options share. Imports nothing, so that `--help` is quick."""

# Images, pairs or captions per batch.
BATCH_SIZE = 32
# Questions per batch. Ranking takes 4 bytes per question, candidate, token and word of the vocabulary.
VQA_BATCH_SIZE = 8
# Candidates per query that the ITM head re-ranks: salesforce/BLIP, configs/retrieval_flickr.yaml (COCO: 256).
K_TEST = 128
# Answers of the list that are scored in full: salesforce/BLIP, configs/vqa.yaml.
NUM_CANDIDATES = 128

__all__ = ["BATCH_SIZE", "K_TEST", "NUM_CANDIDATES", "VQA_BATCH_SIZE"]
