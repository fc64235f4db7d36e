"""Shared by the doors of this backend."""
