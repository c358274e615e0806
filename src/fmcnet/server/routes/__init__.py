"""The HTTP routes: `search.py`, `entries.py`, `info.py`. A new file goes into `PARTS` of `app.py`."""
