# SPDX-License-Identifier: BSD-3-Clause
"""The network: one noun a file."""
