"""The asv suite; ``../README.md`` says how to run it."""
