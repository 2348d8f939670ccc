"""The ground floor: what a section is. Spots, coordinates, image and size of a pixel, by one set of rules."""
