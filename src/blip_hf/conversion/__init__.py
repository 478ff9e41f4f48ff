# SPDX-License-Identifier: BSD-3-Clause
"""Conversion of original checkpoints (salesforce/BLIP, LAVIS) to this package and back."""

from .files import Conversion, convert_original_checkpoint, restore_original_checkpoint
from .names import convert_original_state_dict, restore_original_state_dict


__all__ = [
    "Conversion",
    "convert_original_checkpoint",
    "convert_original_state_dict",
    "restore_original_checkpoint",
    "restore_original_state_dict",
]
