"""The controller: the one part with a clock, in the scheduler's event loop."""
