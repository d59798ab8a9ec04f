"""The training loop and what composes it (floor 6)."""
