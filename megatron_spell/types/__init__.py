"""The nouns of the project (floor 0): plain frozen records, no behaviour that needs a library beyond numpy."""
