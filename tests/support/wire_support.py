"""What several tests of connections read from a socket."""


def read_all(connection):
    """What the server says until it closes the connection; empty if it closes it without a word."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said
