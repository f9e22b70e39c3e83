"""A run: its folder, what it ran on, what it found."""
