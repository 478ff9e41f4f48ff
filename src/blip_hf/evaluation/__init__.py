# SPDX-License-Identifier: BSD-3-Clause
"""Evaluation of each task: metrics on plain tensors and texts. Imports nothing, so that `--help` is quick."""
