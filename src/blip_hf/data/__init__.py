# SPDX-License-Identifier: BSD-3-Clause
"""Where images and captions come from, and what is done to them before a model sees them."""
