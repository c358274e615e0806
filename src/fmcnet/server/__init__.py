"""A gallery over HTTP, and its page: `fmcnet serve` (extra `serve`)."""
