# SPDX-License-Identifier: BSD-3-Clause
"""The page of `blip-hf app`: one file for each tab, built with Gradio (the extra `app`)."""
