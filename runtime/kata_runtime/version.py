"""The version of this runtime: one place, read by packaging, `-v`, and `kata-ctl version`."""

VERSION = "0.1.0"
