"""Policies made of another policy."""
