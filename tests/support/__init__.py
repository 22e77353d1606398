"""Doubles and helpers that tests share, each once."""
