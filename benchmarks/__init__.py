# SPDX-License-Identifier: BSD-3-Clause
"""Benchmarks of speed and memory against transformers and salesforce/BLIP. Run all: `python -m benchmarks`."""
