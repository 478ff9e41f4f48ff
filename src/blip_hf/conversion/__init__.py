# SPDX-License-Identifier: BSD-3-Clause
"""Original checkpoints (salesforce/BLIP, LAVIS) to ours and back."""

from .files import Conversion, convert_original_checkpoint, restore_original_checkpoint
from .names import convert_original_state_dict, restore_original_state_dict


__all__ = [
    "Conversion",
    "convert_original_checkpoint",
    "convert_original_state_dict",
    "restore_original_checkpoint",
    "restore_original_state_dict",
]
