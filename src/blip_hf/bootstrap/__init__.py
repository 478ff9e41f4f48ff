# SPDX-License-Identifier: BSD-3-Clause
"""The paper's whole loop (section 4): pre-train, fine-tune captioner and filter, clean the data, pre-train again."""
