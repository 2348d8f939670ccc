"""From a folder of what the user has to the paper's tables: what lies there, what is missing, how figures compare."""
