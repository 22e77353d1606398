"""The third ring: everything that touches the world outside Spark: HTTP, wire formats, the driver service, local models."""
