"""The outermost ring: what people type and see: the command line and the progress display."""
