# SPDX-License-Identifier: BSD-3-Clause
"""Metrics, and the evaluation of each task. Imports nothing, so that [`blip_hf.evaluation.defaults`] loads quickly."""
