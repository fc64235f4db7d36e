"""What the Unsloth backend adds to a trainer."""
