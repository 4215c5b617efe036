"""pyroute2's messages, without its top module and its sockets: a quarter of its cost.

`import pyroute2.anything` runs `pyroute2/__init__.py`, which imports every part of the library. So the
package is put in place without running it; its parts import each other by their full names and find it there.
Its sockets bring asyncio and ssl, and its classes for interfaces and traffic control a module for each kind
of them: `netlink`, `links` and `traffic` stand in for them.
"""

from __future__ import annotations

import importlib.util
import sys

if "pyroute2" not in sys.modules and (spec := importlib.util.find_spec("pyroute2")) is not None:
    sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)

from pyroute2.netlink import nla, nlmsg
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = ["fibmsg", "ifaddrmsg", "ndmsg", "nla", "nlmsg", "rtmsg"]
