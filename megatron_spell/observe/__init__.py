"""Seeing a run: metrics, time spans, transcripts, sinks and progress (floor 1)."""
