"""SAEs that were trained elsewhere: read, converted into a checkpoint, and verified. One module a format."""
