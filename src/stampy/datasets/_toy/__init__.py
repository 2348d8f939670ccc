"""Toy sections and slides with planted truth."""
