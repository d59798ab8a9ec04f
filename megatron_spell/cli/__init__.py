"""The commands (floor 6): the only readers of arguments and environment."""
