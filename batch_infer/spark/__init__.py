"""The fourth ring: where Spark is spoken: the SQL builder, the Column function, the job engine."""
