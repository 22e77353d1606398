"""The second ring: window, retries, limits, token estimates. Pure logic: the clock is injected and nothing here does I/O."""
