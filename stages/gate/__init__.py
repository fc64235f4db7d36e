"""The data gate: rules as data, and what they found, in words."""
