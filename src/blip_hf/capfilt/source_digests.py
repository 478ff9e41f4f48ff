# SPDX-License-Identifier: BSD-3-Clause
"""Refuses to resume, filter or report a run on other data than it started with."""

import json
from collections.abc import Mapping
from typing import Any

from ..data.readers import Shard, cut_shards
from ..data.readers.sources import open_source
from ..data.source_digests import digest_source, find_changes
from .scores import RunFolder


def check_source(run: RunFolder, digests: Mapping[str, str]) -> None:
    """Raises `ValueError` if the source has changed since the run started."""
    path = run.source_digests
    if not path.is_file():
        return  # a run of an earlier version
    changes = find_changes(json.loads(path.read_text(encoding="utf-8")), digests)
    if changes:
        raise ValueError(
            f"{run.root} holds scores of other data: since the run started, {', '.join(changes)}. Restore the data, or"
            " run again with another output folder."
        )


def open_unchanged(run: RunFolder, settings: Mapping[str, Any]) -> list[Shard]:
    """Returns the shards of the source of a run. Raises `ValueError` if it has changed since the run started."""
    readers = open_source(
        settings["source"],
        image_root=settings["image_root"],
        allow_outside=settings.get("allow_outside", True),  # runs of version 0.1 opened any image
    )
    check_source(run, digest_source(readers))
    return cut_shards(readers, settings["shard_size"])


__all__ = ["check_source", "open_unchanged"]
