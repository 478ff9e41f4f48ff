# SPDX-License-Identifier: BSD-3-Clause
"""Indexes images with a retrieval model, and searches them by text and by image. [`~blip_hf.search.index.BlipIndex`] is the entry."""
