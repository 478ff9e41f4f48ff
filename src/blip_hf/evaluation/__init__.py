# SPDX-License-Identifier: BSD-3-Clause
"""Metrics and evaluation, one module per task."""
