"""Conversations: from the bytes of a source file to records, and what is known of each."""
