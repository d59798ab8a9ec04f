"""The commands (floor 7): the only readers of arguments and environment."""
