"""The tuned model in the forms that other programs take."""
