"""One endpoint's budget: the pool and its search on the driver, the permits of a task."""
