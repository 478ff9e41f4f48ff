# SPDX-License-Identifier: BSD-3-Clause
"""A file system of fsspec, `flaky://`, that loses connections to files in memory."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyFileSystem(MemoryFileSystem):
    """Each open file fails after `drop_after` bytes, `num_drops` times in all."""

    protocol = "flaky"
    store: dict = {}
    pseudo_dirs = [""]
    drop_after, num_drops = 1000, 0
    num_opened = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        if mode != "rb":
            return file
        type(self).num_opened += 1
        return _FlakyFile(type(self), file.getvalue())


class _FlakyFile:
    def __init__(self, owner, content):
        self.owner, self.content, self.position, self.num_read = owner, content, 0, 0

    def tell(self):
        return self.position

    def seek(self, position):
        self.position = position

    def read(self, size):
        part = self.content[self.position : self.position + size]
        if self.owner.num_drops and self.num_read + len(part) > self.owner.drop_after:
            self.owner.num_drops -= 1
            raise RuntimeError("connection lost")
        self.position += len(part)
        self.num_read += len(part)
        return part

    def close(self):
        pass


def register_flaky_files() -> type[FlakyFileSystem]:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.store.clear()
    FlakyFileSystem.num_drops = FlakyFileSystem.num_opened = 0
    return FlakyFileSystem
