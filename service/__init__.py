"""The service: FastAPI application, engine and command line over a store."""
