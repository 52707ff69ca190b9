"""Requests by hand: what a server sends over a socket, and requests to an application below HTTP."""

import asyncio


def read_all(connection):
    """What the server says until it closes the connection; empty if it closes it without a word."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def ask_by_hand(app, *, path="/v1/search", method="POST", receive, kind=b"application/json", headers=()):
    """One request whose body is under the test's control; returns its status and headers."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "http_version": "1.1", "scheme": "http",
        "root_path": "", "headers": [(b"host", b"testserver"), (b"content-type", kind), *headers],
        "client": ("127.0.0.1", 1),
    }  # fmt: skip

    async def run():
        await app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    return run()


async def never():
    await asyncio.sleep(3600)


def in_app(app, scenario):
    async def main():
        async with app.router.lifespan_context(app):
            return await asyncio.wait_for(scenario(app.state.services), 60)

    return asyncio.run(main())
