"""Drawn coloured shapes with true and false statements about them; the drawings imitate one benchmark (NLVR)."""
