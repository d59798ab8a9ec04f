"""Asking questions whose answers are known (floor 5)."""
