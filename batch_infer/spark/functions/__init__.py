"""The SQL functions, and how Spark is told of them."""
