"""What an output is worth: the rule's verdict, the votes, the question's reward (floor 1)."""
