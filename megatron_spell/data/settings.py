"""What a store is built with."""

from dataclasses import dataclass

from megatron_spell.data.errors import BuildError


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Settings of one build; they are written into the store. Raises BuildError naming field, value and range.

    `max_chars` None leaves documents of files whole and cuts the language reference at its own default.
    """

    set_size: int = 16  # documents; a set holds between half and twice as many
    max_chars: int | None = None  # longer documents are cut at headings, paragraphs and sentences
    min_chars: int = 80  # shorter documents are dropped
    heldout: float = 0.15  # share of the documents, in whole groups, that is never trained on
    seed: int = 0

    def __post_init__(self) -> None:
        self._demand("set_size", self.set_size >= 2, "be at least 2")
        self._demand("min_chars", self.min_chars >= 1, "be at least 1")
        self._demand("heldout", 0 <= self.heldout < 1, "be at least 0 and below 1")
        self._demand("seed", 0 <= self.seed < 2**32, "be at least 0 and below 2^32")
        if self.max_chars is not None:
            self._demand("max_chars", self.max_chars >= self.min_chars, f"not be below min_chars = {self.min_chars}")

    @property
    def fewest(self) -> int:
        """Fewest documents that make a set."""
        return -(-self.set_size // 2)

    def _demand(self, field: str, holds: bool, rule: str) -> None:
        if not holds:
            raise BuildError(f"{field} = {getattr(self, field)} must {rule}")
