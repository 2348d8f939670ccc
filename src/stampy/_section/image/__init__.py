"""Image of a section: choice, files and levels, conversion of pixels to 8-bit RGB, and plausibility checks."""
