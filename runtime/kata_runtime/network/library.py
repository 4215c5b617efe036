"""pyroute2, without what its top module imports besides: half of its cost.

`import pyroute2.anything` runs `pyroute2/__init__.py`, which imports every part of the library. So the
package is put in place without running it; its parts import each other by their full names and find it there.
"""

from __future__ import annotations

import importlib.util
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError
else:
    if "pyroute2" not in sys.modules and (spec := importlib.util.find_spec("pyroute2")) is not None:
        sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)

    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

__all__ = ["IPRoute", "NetlinkError"]
