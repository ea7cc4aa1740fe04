"""A static site over run folders: opens from the file system, asks no other host for anything."""
