"""The one exception of this room."""


class ObserveError(ValueError):
    """Something that cannot be recorded; the message names what and the way out."""
