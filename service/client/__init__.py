"""A typed Python client of the service: ``Client`` and, for asyncio, ``AsyncClient``."""

from service.client.client import AsyncClient, Client, ClientError, Patience

__all__ = ["AsyncClient", "Client", "ClientError", "Patience"]
