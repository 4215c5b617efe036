"""A stock kernel that runs a shell script as its init, in a machine of the in-process driver."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from kata_configuration.models.dragonball import Dragonball as DragonballTable
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.dragonball.driver import Dragonball
from kata_runtime.image import cpio
from kata_runtime.image.tree import Tree
from local_host import LocalHost
from patience import PATIENCE

IMAGE = Path(os.environ.get("KATA_TEST_IMAGE", "/var/lib/kata-containers/image"))
BUDGET = max(120.0, PATIENCE)
PROLOGUE = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /sys /mnt
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
exec >/dev/console 2>&1
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
size() { cat "/sys/block/$1/size" 2>/dev/null || echo 0; }
plugged() { until [ "$(size "$1")" -gt 0 ] && [ -b "/dev/$1" ]; do usleep 20000; done; }
emptied() { until [ "$(size "$1")" = 0 ]; do usleep 20000; done; }
"""
EPILOGUE = """
echo "the script is done"
while :; do sleep 1000; done
"""


class ScriptedGuest:
    """Such a machine, for the time of an `async with`. settings: of [hypervisor.dragonball]."""

    def __init__(self, directory: Path, script: str, **settings: Any) -> None:
        self.host = LocalHost()
        self._initrd = directory / "initrd"
        extra = Tree()
        extra.file("init", f"{PROLOGUE}{script}{EPILOGUE}".encode(), 0o755)
        # A later archive's files take the place of an earlier one's.
        self._initrd.write_bytes((IMAGE / "kata-initrd.img").read_bytes() + cpio.pack(extra))
        kernel = IMAGE / "vmlinuz"
        self.spec = VmSpec("scripted", directory, 1, 256, kernel, initrd=self._initrd)
        self.machine = Dragonball(DragonballTable(kernel=kernel, **settings), self.host)

    async def __aenter__(self) -> ScriptedGuest:
        try:
            await self.machine.prepare(self.spec)
            await self.machine.run()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        await self.machine.stop()
        await self.host.aclose()
        self._initrd.unlink()

    async def says(self, text: str) -> None:
        """Wait until the guest has printed something. Raises AssertionError with all that it has printed."""
        try:
            async with asyncio.timeout(BUDGET):
                while text not in self.machine.console_tail:  # noqa: ASYNC110 - what is awaited has no event
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"the guest did not say {text!r}:\n{self.machine.console_tail}") from None
