# SPDX-License-Identifier: BSD-3-Clause
"""Defaults of evaluation, for functions and command options alike. Imports nothing, so that `--help` is quick."""

BATCH_SIZE = 32
"""Images of a batch."""

K_TEST = 128
"""Candidates that the matching head re-ranks (salesforce/BLIP: 128 for Flickr30k, 256 for COCO)."""

NUM_CANDIDATES = 128
"""Answers of a list that are scored in full (salesforce/BLIP, configs/vqa.yaml)."""

__all__ = ["BATCH_SIZE", "K_TEST", "NUM_CANDIDATES"]
