# SPDX-License-Identifier: BSD-3-Clause
"""What a trained model is worth: metrics on plain tensors."""

from .recall import chance_recalls, relevance_matrix, retrieval_recalls


__all__ = ["chance_recalls", "relevance_matrix", "retrieval_recalls"]
