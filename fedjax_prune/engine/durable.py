"""Names of files that outlive a loss of power."""

import errno
import os
from pathlib import Path

_WITHOUT_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that cannot wait for a folder."""


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, if its file system can.

    Raises:
      OSError: if the disk takes no more.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _WITHOUT_FOLDERS:
            raise
    finally:
        os.close(descriptor)
