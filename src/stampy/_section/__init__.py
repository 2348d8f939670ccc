"""Spots, coordinates, image and pixel size of a section, by the same rules in all packages."""
