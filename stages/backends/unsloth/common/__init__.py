"""Shared by training and inference."""
