# SPDX-License-Identifier: BSD-3-Clause
"""Original checkpoints (salesforce/BLIP, LAVIS) to ours and back."""

from .names import convert_original_state_dict


__all__ = ["convert_original_state_dict"]
