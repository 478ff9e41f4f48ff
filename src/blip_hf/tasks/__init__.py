# SPDX-License-Identifier: BSD-3-Clause
"""Fine-tuning and evaluation of each task, as the commands run them; `pretrain` for all objectives."""
