"""Routes: parse, call, shape. One file for each part of the API."""
