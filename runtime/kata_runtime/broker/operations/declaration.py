"""What an operation of the broker is: its arguments and their checks, when it is allowed, and its handler.

    @operation(ALWAYS, path=checks.path)
    def make_directory(context: Context, *, path: str) -> Reply:
        "Make a directory below the shared directory."
        context.files.make_directory(path)
        return Reply()

makes `make_directory` an `Operation`. The shim asks for it as `request(make_directory, path="/x")`: the type
checker holds the arguments to the handler's, and the name is written once.

The shim imports the declarations, so they import no code that acts: a handler calls the parts of its context.
"""

from __future__ import annotations

from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Concatenate, Generic, ParamSpec

    from kata_runtime.broker.context import Context
    from kata_runtime.broker.operations.checks import Check
    from kata_runtime.broker.phase import Phase

    P = ParamSpec("P")

    class _Typed(Generic[P]):
        """Carries the handler's arguments for the type checker."""
else:
    # `typing` costs the broker 4 ms, and nothing here needs it while it runs.
    P = None

    class _Typed:
        def __class_getitem__(cls, _):
            return cls


class Reply:
    """What a handler answers. descriptors: sent along, and closed afterwards. result: JSON."""

    __slots__ = ("descriptors", "result")

    def __init__(self, *descriptors: int, **result: Any) -> None:
        self.descriptors = list(descriptors)
        self.result = result


class Operation(_Typed[P]):
    """One thing that may be asked of the broker. Made by `operation`.

    name: its handler's name, which is the one on the wire. arguments: a check for each, by name. phases: when
    it is allowed. descriptors: how many come with a request: a number, or the name of the argument that lists
    where each of them goes; the handler gets them as `descriptors` and does not close them.
    """

    def __init__(
        self,
        handler: Callable[Concatenate[Context, P], Reply],
        arguments: dict[str, Check],
        phases: frozenset[Phase],
        descriptors: int | str,
    ) -> None:
        self.name = handler.__name__
        self.__doc__ = handler.__doc__
        self.handler = handler
        self.arguments = arguments
        self.phases = phases
        self.descriptors = descriptors

    def __repr__(self) -> str:
        return f"Operation({self.name})"

    def check(self, arguments: dict[str, Any], descriptors: int) -> None:
        """Check the arguments of a request, and how many descriptors came with it.

        Raises:
            RequestRefusedError: an argument is missing, unknown or malformed, or the number is another.
        """
        if arguments.keys() != self.arguments.keys():
            wrong = ", ".join(sorted(arguments.keys() ^ self.arguments.keys()))
            raise RequestRefusedError(f"{self.name}: missing or unknown argument: {wrong[:100]}")
        for key, allowed in self.arguments.items():
            if not allowed(arguments[key]):
                raise RequestRefusedError(f"{self.name}: {key} may not be {str(arguments[key])[:100]!r}")
        expected = self.descriptors
        if isinstance(expected, str):
            expected = len(arguments[expected])
        if descriptors != expected:
            raise RequestRefusedError(
                f"{self.name}: {descriptors} descriptors came with the request, {expected} must"
            )

    def check_phase(self, phase: Phase) -> None:
        """Raise RequestRefusedError unless it is allowed in this phase."""
        if phase not in self.phases:
            allowed = " or ".join(phase.value for phase in self.phases)
            raise RequestRefusedError(f"{self.name} is refused {phase.value}: it is allowed {allowed} only")

    def perform(self, context: Context, arguments: dict[str, Any], descriptors: list[int]) -> Reply:
        """Call the handler with arguments that were checked. Raises what it raises."""
        handler: Callable[..., Reply] = self.handler
        if self.descriptors:
            return handler(context, **arguments, descriptors=descriptors)
        return handler(context, **arguments)


def operation(
    phases: frozenset[Phase], *, descriptors: int | str = 0, **arguments: Check
) -> Callable[[Callable[Concatenate[Context, P], Reply]], Operation[P]]:
    """Declare the operation that the decorated handler performs; see the module and `Operation`."""

    def declare(handler: Callable[Concatenate[Context, P], Reply]) -> Operation[P]:
        return Operation(handler, arguments, phases, descriptors)

    return declare
