# SPDX-License-Identifier: BSD-3-Clause
"""Runs that are killed, or whose inputs break, and what is left of them."""
