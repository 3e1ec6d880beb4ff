"""The `smith` command: one file a subject, `app.py` puts them together.

Nothing heavy is imported before a command needs it: `smith --help` and shell completion must answer at once.
"""
