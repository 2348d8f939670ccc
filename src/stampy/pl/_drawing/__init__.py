"""What plots share: the section as it is drawn, colours, layout, and the records of tools."""
