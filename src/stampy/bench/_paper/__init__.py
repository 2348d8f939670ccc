"""Tables of the paper from a folder of the user: contents, missing files, and comparison of the results."""
