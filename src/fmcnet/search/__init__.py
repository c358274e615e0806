"""Answers: which entries of a gallery show the person of these images, and how sure that is.

Names are imported on first use, so that the command line explains itself without NumPy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmcnet.search.adding import Indexed
    from fmcnet.search.answer import Answer, Match, MatchGroup
    from fmcnet.search.searcher import Searcher

__all__ = ["Answer", "Indexed", "Match", "MatchGroup", "Searcher"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fmcnet.search' has no attribute '{name}'")
    from fmcnet.search import adding, answer, searcher

    return getattr({"Indexed": adding, "Searcher": searcher}.get(name, answer), name)
