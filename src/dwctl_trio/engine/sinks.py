"""Consumers of events: each keeps ``ports.EventSink``."""

import trio


class ChannelSink:
    """A consumer at the other end of a memory channel."""

    def __init__(self, send_frames: trio.MemorySendChannel[bytes]) -> None:
        self.send_nowait = send_frames.send_nowait
        self.send = send_frames.send


class NoSink:
    """No consumer but the caller, who wants the final response only."""

    def send_nowait(self, frames: bytes) -> None:
        """Let the frames go; they are in the log."""

    async def send(self, frames: bytes) -> None:  # noqa: ARG002 - the port's signature
        """The same, for who wants to wait."""
        await trio.lowlevel.checkpoint()
