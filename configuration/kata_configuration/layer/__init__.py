"""Which files and annotations are in force, and one tree out of all of them."""
