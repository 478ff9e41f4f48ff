# SPDX-License-Identifier: BSD-3-Clause
"""Defaults of evaluation, for functions and command options alike. Imports nothing, so that `--help` is quick."""

# Images per batch. It changes results only by rounding.
BATCH_SIZE = 32

# Candidates per query that the ITM head re-ranks. salesforce/BLIP: 128 for Flickr30k, 256 for COCO (`k_test`).
K_TEST = 128

# Answers of a list that are scored in full. salesforce/BLIP, configs/vqa.yaml (`k_test`).
NUM_CANDIDATES = 128

__all__ = ["BATCH_SIZE", "K_TEST", "NUM_CANDIDATES"]
