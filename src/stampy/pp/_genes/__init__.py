"""Genes: their names and annotation, how they match a vocabulary, their usual levels; with the packaged tables."""
