"""Which configuration file is in force.

    1. the ConfigPath that containerd passes in the runtime's options
    2. the variable KATA_CONF_FILE
    3. /etc/kata-containers/configuration.toml
    4. /usr/share/defaults/kata-containers/configuration.toml

What was named explicitly and is missing is an error: the next rule never steps in for it. Who may change
the file is checked when it is loaded (see `parse.trust`). Over the file come its drop-ins (see `dropins`),
and over these the annotations of the pod that enable_annotations allows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kata_configuration.diagnostics import Code
from kata_configuration.parse.source import fault, require_regular, unreadable

CONFIG_PATH = "ConfigPath"
ENVIRONMENT = "KATA_CONF_FILE"
DEFAULT = "default"

DEFAULT_FILES = (
    Path("/etc/kata-containers/configuration.toml"),
    Path("/usr/share/defaults/kata-containers/configuration.toml"),
)


def discover(
    config_path: str | None, environ: Mapping[str, str], defaults: Sequence[Path] = DEFAULT_FILES
) -> tuple[Path, str]:
    """Return the configuration file in force and the rule that chose it: CONFIG_PATH, ENVIRONMENT or DEFAULT.

    Raises:
        ConfigurationError: the file that was named is missing or not fit, or there is none at all.
    """
    if config_path:
        return _require(Path(config_path), "containerd's ConfigPath"), CONFIG_PATH
    if named := environ.get(ENVIRONMENT):
        return _require(Path(named), ENVIRONMENT), ENVIRONMENT
    for path in defaults:
        if os.path.lexists(path):
            return _require(path, "the default place"), DEFAULT
    places = " and ".join(str(path) for path in defaults)
    raise fault(
        Code.NOT_FOUND,
        defaults[0],
        f"no configuration file: looked at {places}",
        f"create one there, or name one: ConfigPath in containerd's runtime options, or {ENVIRONMENT}",
    )


def _require(path: Path, origin: str) -> Path:
    """Return the path when it names a regular file."""
    if not path.is_absolute():
        raise fault(Code.UNREADABLE, path, f"{origin} is not an absolute path", 'begin it with "/"')
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:
        raise fault(Code.UNREADABLE, path, f"{origin} contains a NUL byte", "check the path") from None
    require_regular(status, path)
    return path
