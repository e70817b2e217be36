"""What the terms of the report mean, said in the section where a term first appears."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from toa_trl.report.html import Facts, Picture, Section, Table

TERMS = {
    "play": "one call of an agent for one response, with its reward",
    "agent": "a model that answers prompts, with its settings",
    "search": "the algorithm that decides which agent plays next, and what it sees",
    "budget": "scored plays of each prompt",
    "draft": "an earlier response that an agent is shown, to improve it",
    "refinement": "a response written from one draft",
    "aggregate": "a response written from several drafts",
    "fresh arm": "a node of the tree below which an agent answers the prompt alone",
    "depth": "steps from the prompt to a response in the tree; 0 for a first answer",
    "tau": "the scale on which toa turns rewards into numbers between 0 and 1",
    "alpha": "weight of exploration: a large one favours what toa has tried seldom",
    "width": "responses that a depth of the tree takes before toa may go deeper",
    "FLOPs": "arithmetic operations of the models",
    "adaptive": "of a budget: the next play goes to the prompt where it is expected to gain most",
    "margin": "the reward of the chosen response less that of the rejected one",
    "rank": "place of a response among those of its prompt by reward; 1 is the best",
    "matched length": "among pairs of responses that are about equally long",
    "held-out": "kept out of the training, to measure with",
    "verifier": "decides whether a response is correct",
    "oracle": "measured of the play that the verifier likes best, which no search can know",
    "interval": "95 %: where the figure would lie in 19 of 20 repetitions",
}
PATTERNS = {term: re.compile(rf"\b{term}s?\b", re.IGNORECASE) for term in TERMS}


def explain(opening: str, sections: Sequence[Section]) -> dict[str, list[tuple[str, str]]]:
    """Return (term, meaning) of the terms that first appear in each section, by its id.

    Args:
        opening: the text before the first section; its terms are explained there.
        sections: in the order of the page.
    """
    known: set[str] = set()
    explained: dict[str, list[tuple[str, str]]] = {}
    for number, section in enumerate(sections):
        text = " ".join([section.title, *_texts(section)])
        if section.id == "tree":
            text += " play agent draft fresh arm aggregate depth refinement rank"
        text = f"{opening} {text}" if number == 0 else text
        new = [term for term in TERMS if term not in known and PATTERNS[term].search(text)]
        known.update(new)
        explained[section.id] = [(term, TERMS[term]) for term in new]
    return explained


def _texts(section: Section) -> Iterator[str]:
    """Yield the texts of a section, without the cells of tables, which hold names and responses."""
    for block in section.blocks:
        if isinstance(block, str):
            yield block
        elif isinstance(block, Picture | Table):
            yield str(block.caption)
            header: Sequence[Any] = block.header if isinstance(block, Table) else ()
            yield " ".join(map(str, header))
        elif isinstance(block, Facts):
            for term, value in block.items:
                yield f"{term} {value}" if term.startswith(("search", "budget")) else term
