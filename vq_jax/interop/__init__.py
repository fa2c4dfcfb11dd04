"""Reads and writes the weights of other codebases. Code inside untrusted files is never run."""
