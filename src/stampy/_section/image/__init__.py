"""The image of a section: which one it has, files and levels, pixels as 8-bit RGB, and whether it fits."""
