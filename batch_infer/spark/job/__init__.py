"""The job engine: a DataFrame in, its requests asked once, a table out."""
