"""Toy sections and slides with known ground truth."""
