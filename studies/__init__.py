"""Simulations that decide what the design claims: seeded, repeatable, their results kept in docs/studies/."""
