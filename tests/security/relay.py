"""Carries connections from a listening socket that it inherited, number argv[1], to 127.0.0.1:argv[2] of its own namespace.

So a client outside reaches a server inside a network namespace, and nothing else crosses.
"""

import asyncio
import socket
import sys


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        inside, to_inside = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    except OSError:
        writer.close()
        return
    await asyncio.gather(carry(reader, to_inside), carry(inside, writer))
    to_inside.close()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, sock=socket.socket(fileno=int(sys.argv[1])))
    await server.serve_forever()


asyncio.run(main())
