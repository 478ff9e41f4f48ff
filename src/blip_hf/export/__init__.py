# SPDX-License-Identifier: BSD-3-Clause
"""Export of captioners, matchers and VQA models to ONNX and OpenVINO, and the models that run such a folder."""
