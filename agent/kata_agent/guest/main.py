"""Entry of the guest's init: `kata_agent.guest.main.main()` never returns."""

from kata_agent.guest import protobuf

protobuf.load()  # before anything imports the generated messages the usual, slow way

from kata_agent.guest.boot import main  # noqa: E402

__all__ = ["main"]
