"""The corpus pipeline: from sources to planned sets in resumable steps on disk."""
