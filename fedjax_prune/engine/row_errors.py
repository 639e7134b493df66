"""What is raised if rows on disk cannot be written or read."""


class RowsError(RuntimeError):
    """Rows on disk that cannot be written or read; the message says which and why.

    Examples:
      >>> import fedjax_prune as fp
      >>> try:
      ...     raise fp.RowsError("/runs/1/rows/1-7.rows cannot be read: it is cut.")
      ... except fp.RowsError as error:
      ...     print(error)
      /runs/1/rows/1-7.rows cannot be read: it is cut.
    """


class StorageError(RowsError):
    """Object storage that does not answer or refuses; its files may be intact."""

    def __init__(self, where: str, reason: str):
        """Makes the message.

        Args:
          where: address of a file or a folder.
          reason: in one line.
        """
        super().__init__(f"{where} cannot be used: {reason.rstrip('.')}.")
        self.reason = reason.rstrip(".")


def reason_of(error: OSError | StorageError) -> str:
    """Why a disk or object storage has failed, without the place and a full stop."""
    if isinstance(error, StorageError):
        return error.reason
    return (error.strerror or str(error)).rstrip(".")
