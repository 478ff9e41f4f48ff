# SPDX-License-Identifier: BSD-3-Clause
"""Readers of image-text data, one file a format."""
