"""Per task: the checks on a question, and how an answer is read."""
