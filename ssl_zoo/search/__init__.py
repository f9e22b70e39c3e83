"""Features of a folder's images: written to a file, indexed, searched."""
