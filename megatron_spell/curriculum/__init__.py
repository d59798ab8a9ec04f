"""What the next round is played on, and the pressures that make it harder over training (floor 2)."""
