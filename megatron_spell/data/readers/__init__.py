"""Readers: from files of many kinds to documents, in slices that can be read apart from each other."""
