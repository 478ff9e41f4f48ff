# SPDX-License-Identifier: BSD-3-Clause
"""Counts of skipped records by reason, and the bound that stops a run whose data is broken."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from ..image_utils import ImageErrorKind


if TYPE_CHECKING:
    from .readers.samples import Reason


MAX_BAD_SHARE = 0.1
"""Default of `max_bad_share`: the share of skipped records that stops a run."""
MIN_RECORDS = 1000
"""Records after which the share is checked during a run."""


class BrokenDataError(ValueError):
    """Raised if more records are skipped than `max_bad_share` accepts. The message counts them by reason."""


class SkipCounts:
    """Counts usable records, and skipped ones by reason with the first of each.

    Example:
        >>> counts = SkipCounts(num_usable=6)
        >>> counts.add("unreadable_image", "web-00000/0012")
        >>> counts.add("empty_text", "web-00000/0013")
        >>> counts.total, counts.share(), str(counts)
        (2, 0.25, 'Skipped 2 of 8 records: 1 unreadable_image (first web-00000/0012), 1 empty_text (first web-00000/0013).')
    """

    def __init__(
        self, num_usable: int = 0, by_reason: Mapping[str, int] | None = None, first: Mapping[str, str] | None = None
    ) -> None:
        self.num_usable = num_usable
        self.by_reason = Counter(by_reason)
        self.first = dict(first or {})

    def add(self, reason: str, name: str) -> None:
        """Counts a skipped record."""
        self.by_reason[reason] += 1
        self.first.setdefault(reason, name)

    @property
    def total(self) -> int:
        """Number of skipped records."""
        return self.by_reason.total()

    @property
    def num_records(self) -> int:
        """Number of usable and skipped records."""
        return self.num_usable + self.total

    def share(self) -> float:
        """Share of skipped records, 0 without records."""
        return self.total / max(self.num_records, 1)

    def check(self, max_bad_share: float, *, min_records: int = 1) -> None:
        """Raises [`BrokenDataError`] if the share of at least `min_records` records is above `max_bad_share`."""
        if self.num_records >= min_records and self.share() > max_bad_share:
            raise BrokenDataError(
                f"{self} That is a share of {self.share():.3f}, and max_bad_share={max_bad_share} is accepted. Repair the"
                " data, or raise max_bad_share (1 accepts all)."
            )

    def metrics(self) -> dict[str, Any]:
        """`num_skipped`, the total, and `num_skipped_by_reason`."""
        return {"num_skipped": self.total, "num_skipped_by_reason": dict(sorted(self.by_reason.items()))}

    def state_dict(self) -> dict[str, Any]:
        """The counts, which JSON can store."""
        return {"num_usable": self.num_usable, "by_reason": dict(self.by_reason), "first": dict(self.first)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The counts of a [`state_dict`]."""
        return cls(**state)

    @classmethod
    def sum(cls, counts: Iterable[Self]) -> Self:
        """The counts of several readers."""
        result = cls()
        for each in counts:
            result.num_usable += each.num_usable
            result.by_reason += each.by_reason
            result.first = {**each.first, **result.first}
        return result

    def __str__(self) -> str:
        if not self.total:
            return f"Skipped none of {self.num_records} records."
        reasons = ", ".join(
            f"{count} {reason} (first {self.first[reason]})" for reason, count in self.by_reason.most_common()
        )
        return f"Skipped {self.total} of {self.num_records} records: {reasons}."


def image_reason(kind: ImageErrorKind) -> "Reason":
    """The reason to skip a record whose image cannot be opened."""
    return "huge_image" if kind == "too_large" else "unreadable_image"


__all__ = ["MAX_BAD_SHARE", "MIN_RECORDS", "BrokenDataError", "SkipCounts", "image_reason"]
