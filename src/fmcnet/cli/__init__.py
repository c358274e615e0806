"""The command line: one module a group of commands, which `app.py` joins."""
