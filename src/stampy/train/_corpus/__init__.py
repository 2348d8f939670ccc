"""Corpora on disk: build, write, read and sample."""
