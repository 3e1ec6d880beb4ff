"""Looks at everything that a job needs, one thing after the other, and says what to do about what is wrong."""
