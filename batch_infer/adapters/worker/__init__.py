"""Where a task's parts are put together, in a Python worker process."""
