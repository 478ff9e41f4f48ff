# SPDX-License-Identifier: BSD-3-Clause
"""Models whose parts run in OpenVINO or ONNX Runtime, opened from the folders that `blip_hf.export` writes."""
