# SPDX-License-Identifier: BSD-3-Clause
"""Fine-tuning and evaluation of each task from end to end: what the commands run, as functions of their options."""
