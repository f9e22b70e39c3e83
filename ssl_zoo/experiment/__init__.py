"""A whole config as a call, and what it builds."""
