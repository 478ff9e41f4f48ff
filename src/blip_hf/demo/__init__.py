# SPDX-License-Identifier: BSD-3-Clause
"""The whole of BLIP in minutes: pre-train a small model on the embedded scenes, then caption and match new ones."""
