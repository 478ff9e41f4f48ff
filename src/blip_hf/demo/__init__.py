# SPDX-License-Identifier: BSD-3-Clause
"""The demo: pre-trains a small BLIP on drawn scenes in minutes, and captions and matches held-out ones."""
