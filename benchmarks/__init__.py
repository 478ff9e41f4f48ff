# SPDX-License-Identifier: BSD-3-Clause
"""Speed and memory of what BLIP exists for, each job beside its rivals: `python -m benchmarks` runs them all."""
