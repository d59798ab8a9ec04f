"""Geometry of ranks (floor 0): no torch, no Megatron."""
