"""The machine: processes, files, text, random numbers, hardware."""
