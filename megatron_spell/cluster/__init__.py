"""Processes on one or more machines (floor 1): actors, launches, ports. The only room that imports Ray."""
