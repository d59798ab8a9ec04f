"""The settings of a run (floor 0): schema, loading, and the rules that hold between sections."""
