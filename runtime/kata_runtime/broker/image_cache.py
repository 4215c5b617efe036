"""Where images of root file systems are kept, for the broker that opens them and the shim that names them."""

from __future__ import annotations

ROLE = "rootfs-image"
"""The role of the program that makes an image."""
CACHE = "/var/lib/kata-containers/rootfs-images"
SUFFIX = ".erofs"
