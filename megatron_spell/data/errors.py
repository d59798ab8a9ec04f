"""What can go wrong between a source and an opened store; every message is one line with the way out."""


class SourceError(ValueError):
    """A source that cannot be read: unknown, empty, not UTF-8, not JSON; names the source and the line."""


class BuildError(ValueError):
    """Settings or documents from which no store can be built."""


class StoreError(ValueError):
    """A file that is no whole token store of this version; names the file."""


class DamageError(StoreError):
    """A token store whose bytes are not those that were written; names the file, the part and the place."""
