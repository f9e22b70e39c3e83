"""The machine: processes, files, random numbers, hardware."""
