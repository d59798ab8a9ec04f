"""The one exception of this room."""


class AlgoError(ValueError):
    """Rewards, rows or limits that cannot be trained on; the message names what and the way out."""
