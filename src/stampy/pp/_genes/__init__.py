"""Gene names and annotation, matching to a vocabulary, usual levels, and the packaged tables."""
