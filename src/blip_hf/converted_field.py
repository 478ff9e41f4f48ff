# SPDX-License-Identifier: BSD-3-Clause
"""For type checkers: fields of configurations that take more types than they have."""

from typing import Generic, TypeVar


Read = TypeVar("Read")
Given = TypeVar("Given")


class ConvertedField(Generic[Read, Given]):
    """A field that is given as one type and read as another, into which `__post_init__` converts it."""

    def __get__(self, config: object, owner: object) -> Read:
        """The value of a finished configuration."""
        raise NotImplementedError

    def __set__(self, config: object, value: Given) -> None:
        """Takes a value to convert."""


__all__ = ["ConvertedField"]
