# SPDX-License-Identifier: BSD-3-Clause
"""Counts of the records that are skipped while a set is loaded, for the metrics of a command."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..data.readers.usable import LoadedFile
    from ..data.skips import SkipCounts


def loading_counts(files: "list[LoadedFile]") -> "SkipCounts":
    """Returns the counts of all files of a set."""
    from ..data.skips import SkipCounts

    counts = SkipCounts.sum(file.counts for file in files)
    # Lists of questions are read in two steps, each with counts.
    counts.num_usable = sum({file.name: file.counts.num_usable for file in files}.values())
    return counts


def add_loading_skips(metrics: Mapping[str, Any], files: "list[LoadedFile]") -> dict[str, Any]:
    """Returns metrics whose `num_skipped` and `num_skipped_by_reason` include the records skipped while loading."""
    by_reason = Counter(metrics.get("num_skipped_by_reason")) + loading_counts(files).by_reason
    return {**metrics, "num_skipped": by_reason.total(), "num_skipped_by_reason": dict(sorted(by_reason.items()))}


__all__ = ["add_loading_skips", "loading_counts"]
