"""Nearest neighbours: the only package that knows FAISS."""
