"""Text to token ids and back: the run's tokenizer and its chat format (floor 1)."""
