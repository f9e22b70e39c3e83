"""Evaluations of a frozen backbone, one module each; every number carries its protocol."""
