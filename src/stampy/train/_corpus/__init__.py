"""Corpora on disk: build, write, read, sample."""
