"""Answers: which entries of a gallery show the person of these images, and how sure that is."""

from fmcnet.search.adding import Indexed
from fmcnet.search.answer import Answer, Match, MatchGroup
from fmcnet.search.searcher import Searcher

__all__ = ["Answer", "Indexed", "Match", "MatchGroup", "Searcher"]
