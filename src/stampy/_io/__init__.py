"""Readers of all formats behind `stampy.read`, one file per format, and the writer of the command line."""
