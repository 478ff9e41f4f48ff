# SPDX-License-Identifier: BSD-3-Clause
"""The `.txt` and `.json` files of an image, in tars and in folders."""

import json

from .records import check_record, read_captions, read_optional_id


SIDECAR_SUFFIXES = (".txt", ".json")


def read_sidecars(
    text: bytes | None, record: bytes | None, where: str, *, needs_captions: bool
) -> tuple[list[str], int | str | None]:
    """Captions and image id from a `.txt`, one caption, and a `.json`. The text overrides the caption of the JSON."""
    try:
        fields = check_record(json.loads(record or b"{}"), f"the JSON of {where}", "caption")
    except RecursionError as error:
        raise ValueError(str(error)) from error
    captions = (
        read_captions(fields, where, required=needs_captions) if text is None else [text.decode("utf-8-sig").strip()]
    )
    return captions, read_optional_id(fields, "image_id", where)


__all__ = ["SIDECAR_SUFFIXES", "read_sidecars"]
