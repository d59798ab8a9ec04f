"""The one exception of this room."""


class CurriculumError(ValueError):
    """A catalog, setting or saved state that cannot be drawn from; the message names what and the way out."""
