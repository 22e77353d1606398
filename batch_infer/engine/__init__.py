"""The second ring: window, retries, limits, token estimates. Pure logic: the clock is injected, nothing does I/O."""
