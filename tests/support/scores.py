# SPDX-License-Identifier: BSD-3-Clause
"""Rows and tables of CapFilt scores."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from blip_hf.capfilt.scores import SCHEMA


def score_row(
    sample_id: str, image_id: str, text: str, source: str, itm: float | None, **fields: Any
) -> dict[str, Any]:
    row = {"sample_id": sample_id, "image_id": image_id, "image": "", "text_index": 0, "text": text, "source": source}
    return row | {"itm": itm, "itc": 0.0, "log_prob": None} | fields


def table_of(rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)
