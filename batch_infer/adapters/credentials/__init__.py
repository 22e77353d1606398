"""Secrets, bearer tokens and OAuth: where they come from and when they are renewed."""
