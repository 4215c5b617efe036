"""From bytes to a TOML tree, with the place of each key and value."""
