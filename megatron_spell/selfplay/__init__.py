"""Playing rounds and making a batch of them (floor 4)."""
