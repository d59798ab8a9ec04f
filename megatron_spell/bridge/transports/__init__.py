"""Ways to move bytes between ranks; none of them knows what a weight is."""
