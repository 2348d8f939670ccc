"""Spots, coordinates, image and pixel size of a section, by one set of rules for all packages."""
