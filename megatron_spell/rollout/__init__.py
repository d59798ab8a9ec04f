"""Sampling (floor 3): engines that write completions and take new weights. The only room that imports vLLM."""
