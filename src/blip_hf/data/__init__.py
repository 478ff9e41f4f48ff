# SPDX-License-Identifier: BSD-3-Clause
"""Data sets: readers of all formats, drawn scenes, transforms and collators."""
