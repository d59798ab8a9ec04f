"""What each role is told, and what is read out of its words (floor 1)."""
