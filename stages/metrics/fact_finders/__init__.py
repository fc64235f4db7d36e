"""What finds the facts of a text, by kind."""
