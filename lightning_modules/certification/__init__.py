"""Certificates: what each prediction provably survives."""
