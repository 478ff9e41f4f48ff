# SPDX-License-Identifier: BSD-3-Clause
"""CapFilt: a captioner writes texts for images, a filter scores them and the web's, and a rule keeps the good ones."""
