"""Object storage that fsspec keeps in memory, under the address gs://."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Buckets(MemoryFileSystem):
    """All buckets of this process; `refusal` is raised in place of any answer."""

    protocol = "gs"
    store, pseudo_dirs = {}, [""]
    refusal = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def ls(self, path, detail=True, **kwargs):
        self.answer()
        return super().ls(path, detail, **kwargs)

    def _open(self, path, mode="rb", **kwargs):
        self.answer()
        return super()._open(path, mode, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.answer()
        return super().cat_file(path, start, end, **kwargs)

    def answer(self):
        if Buckets.refusal is not None:
            raise Buckets.refusal


fsspec.register_implementation("gs", Buckets, clobber=True)
