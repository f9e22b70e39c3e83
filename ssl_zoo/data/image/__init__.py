"""Images, from bytes to views."""
