"""A loopback port of this machine that opens into another network namespace.

It listens here, then moves to the other network and makes its connections from there: a socket stays in the
network that it was made in. Run as ``python -I door.py PORT PID ADDRESS PORT``, PID being any process of that
network.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
from contextlib import suppress

_CLONE_NEWNET = 0x40000000
_CHUNK = 1 << 18


def _move(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def _serve(listener: socket.socket, address: str, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(address, port, limit=_CHUNK)
        except OSError:
            # As a server that is away: the connection is refused, or breaks.
            writer.transport.abort()
            return
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        for end in (writer, far_writer):
            end.close()

    server = await asyncio.start_server(connected, sock=listener, limit=_CHUNK)
    await server.serve_forever()


def main() -> None:
    here, pid, address, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    listener = socket.create_server(("127.0.0.1", here), backlog=128)
    _move(pid)
    asyncio.run(_serve(listener, address, port))


if __name__ == "__main__":
    main()
