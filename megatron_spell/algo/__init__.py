"""Advantages, the loss and the packing of rows into bins (floor 1)."""
