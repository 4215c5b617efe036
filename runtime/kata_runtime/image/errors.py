"""Errors of an image build.

    ImageError
    ├── ToolError       a program that the build runs is missing or failed
    ├── PackageError    the package manager cannot name or fetch what a guest is made of
    ├── ContentError    the packages do not contain what a guest needs
    └── OutputError     the image or the cache cannot be written: rights, space, file system

Messages are lower case without a full stop, and end with what to do where we know it.
"""

from __future__ import annotations


class ImageError(Exception):
    """Root of all errors that an image build raises on purpose."""


class ToolError(ImageError):
    """A program that the build runs is missing or failed."""


class PackageError(ImageError):
    """The package manager cannot name or fetch what a guest is made of."""


class ContentError(ImageError):
    """The packages do not contain what a guest needs."""


class OutputError(ImageError):
    """The image or the cache cannot be written."""
