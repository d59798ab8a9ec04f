"""Weights between trainers, engines and Hugging Face folders, described as boxes of Hugging Face tensors (floor 1)."""
