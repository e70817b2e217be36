"""Final answers to mathematical problems: find one in a text, and compare two."""

import re
from itertools import pairwise

from toa_trl.rewards.notation import normalise

TAIL = 10_000  # characters at the end of a text that are searched for an unmarked answer
LONGEST = 2000  # characters; a longer text is not an answer
_FEW = 3  # words; a longer text is a sentence
_SENTENCE = re.compile(r"[^\W\d_]{2,}\s.*[\d=]|因此|所以")
_OPTION = re.compile(
    r"\b(?:option|choice|answer)\s*\(?([A-J])\)?\s+is\s+"
    r"(?:correct|right|the (?:correct|right|best))\b",
    re.I,
)

# the start of a box (without braces around a number or a letter), or a brace
_BRACE = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(\{)|(-?[\d.,/]*\d\.?|[A-Za-z](?!\w)))|\\?[{}]"
)
_MARK = re.compile(r"(?<!#)####(?!#)[ \t]*(.*)")
# a Markdown heading of one step of a solution
_HEADING = re.compile(r"\W*(?:step|part|case)\b|\d+[.):]\s+[a-z]", re.I)
# what instructions have in a box: "Put it in \boxed{answer}."
_PLACEHOLDER = re.compile(
    r"(?:\\text\s*\{)?\s*(?:(?:your|the|final|my)\s+)*(?:answer|result|solution)(?:\s+here)?\s*\}?"
    r"|\\?(?:\.\.\.|[lc]?dots|cdots)|…"
)
# what joins the boxes of one answer
_JOINT = re.compile(
    r"(?:[\s$,;、，&和与或]|\\[()\[\],;: ]|\\text\s*\{\s*(?:and|or)\s*\}|\\q?quad"
    r"|\b(?:and|or)\b)*"
)

_NAME = re.compile(r"(?<![\\\w^{])([A-Za-z])\s*=\s*$")
_NAMED_JOINT = re.compile(_JOINT.pattern + r"[A-Za-z]\s*=\s*")

_STATED = re.compile(
    r"\b(?:answer|option|choice|result|solution)s?\b(?:[^.!?\n:=]{0,60}?)"
    r"(?:\b(?:is|are|was|equals|would be|should be|must be|will be|could be|may be|might be)\b"
    r"(?!\s*(?:correct|wrong|incorrect|right)\b)|n't|[:=：])"
    r"|\b(?:answer|result)[\s*_]*(?=\n)"
    r"|(?:答案|结果|选项|应选|故选)\s*(?:应该?)?(?:[是为选：:]|等于)*|答[：:]|答えは|정답은"
    r"|Ответ\s*[:：—-]?"
    r"|\b(?:respuesta|réponse|risposta|resposta|Antwort|Lösung|Ergebnis)\b[^.!?\n:=]{0,40}?"
    r"(?:\b(?:es|est|è|é|ist|lautet)\b|[:=])",
    re.I,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？\n]|(?<=\w)\.(?=[*_]+(?:\s|$))")
_NEGATED_BEFORE = re.compile(r"\b(?:not|never|doubt|unlikely|cannot|if|whether|suppose|assum\w+|"
                             r"false|wrong|incorrect|no(?=\s*$)|unless|why|guess(?:ed)?)\b"
                             r"|n't\b|不是|如果", re.I)  # fmt: skip
_NEGATED = re.compile(r"\s*[:*_]*\s*(?:definitely |certainly |surely |clearly )?"
                      r"(?:not\b|n't\b|不是|不)", re.I)  # fmt: skip
_BUT = re.compile(r"\bbut(?: rather)?\b|而是|, it is\b", re.I)
_WITHDRAWN = re.compile(
    r"\b(?:wait|actually|scratch that|correction|on second thou\w+"
    r"|let me (?:re|double|check again)\w*"
    r"|(?:that|this|it)(?:'s| is| was) (?:wrong|incorrect|not right|a mistake|not correct)"
    r"|i (?:was wrong|made a(?:n error| mistake)))\b|(?:^|[.!?]\s+)(?:no|oops|hmm)\b|不对|错了",
    re.I,
)
_REASON = re.compile(
    r",?\s*\b(?:because|since|as|so that|for which|which|where|when|given that|after|while"
    r"|rather than|instead of|and not|not|due to|by|thanks to)\b.*"
    r"|，?(?:因为|而不是|不是).*|\s+[—–]\s.*",
    re.I | re.S,
)
_FILLER = re.compile(
    r"(?:[:：*_\s=]|\b(?:therefore|thus|then|simply|just|clearly|indeed|hence|probably|option|choice"
    r"|definitely|exactly|equal to|given by|now)\b)+", re.I
)  # fmt: skip
_CONCLUDED = re.compile(
    r"\b(?:therefore|so|thus|hence|in total|altogether|in all|in conclusion|finally|consequently)\b"
    r"|因此|所以|∴|\\therefore", re.I
)  # fmt: skip
_MATH = re.compile(r"\$\$?(.+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_QUANTITY = re.compile(
    r"(?<![\w.^_{\\])[-−]?[$€£]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?(?:\s*\\?%)?(?![\w^])"
    r"|\\frac\s*\{[^{}]*\}\{[^{}]*\}"
)


def final_answer(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} (or \fbox), else the text after the last ####.

    Boxes that only commas or "and" separate are one answer, a list. Boxes that are not closed or
    empty, or hold only the word "answer", are ignored. A box has priority over ####, which is also
    a Markdown heading; a line after #### without a digit and with text below it is such a heading.
    Return None if there is neither.
    """
    boxes: list[tuple[int, int, str]] = []  # start of the command, end, content
    opened: list[tuple[int, int] | None] = []  # open braces; for a box, where it starts
    for token in _BRACE.finditer(text):
        if token[2]:
            boxes.append((token.start(), token.end(), token[2]))  # without braces
        elif token[1] or token[0] == "{":
            opened.append((token.start(), token.end()) if token[1] else None)
        elif token[0] == "}" and opened:
            started = opened.pop()
            if started is not None:
                content = text[started[1] : token.start()].strip()
                boxes.append((started[0], token.end(), content))
    filled = sorted(box for box in boxes if box[2] and not _PLACEHOLDER.fullmatch(box[2]))
    if filled:
        start, _, content = filled.pop()
        contents = [content]
        name = _NAME.search(text, max(start - 9, 0), start)
        while filled and filled[-1][1] <= start:
            before, end, content = filled[-1]
            named = _NAME.search(text, max(before - 9, 0), before)
            if name and named and _NAMED_JOINT.fullmatch(text, end, start):
                contents[0] = f"{name[1]} = {contents[0]}"  # x = [3], y = [5] is a list, too
            elif not _JOINT.fullmatch(text, end, start):
                break
            start, name = before, named
            contents.insert(0, content)
            filled.pop()
        if len(contents) > 1 and name and "=" in contents[-1]:
            contents[0] = f"{name[1]} = {contents[0]}"
        return ", ".join(dict.fromkeys(contents))
    for mark in reversed(list(_MARK.finditer(text))):
        line = mark[1].strip(" *")
        ends_text = not text[mark.end() :].strip()
        if line and not _HEADING.match(line) and (ends_text or re.search(r"\d", line)):
            return line
    return None


def stated_answer(text: str) -> str | None:
    """Return the answer that a text without a mark states, or None.

    That is what follows the last "the answer is" that is neither negated nor withdrawn, else the
    whole text if it is short, else the only quantity of the last sentence.
    """
    text = re.sub(r"\*\*|__|`", "", text[-TAIL:]).strip()
    text = re.sub(r"(?m)^#+[ \t]*", "", text)
    stated = None
    end = 0
    for match in _STATED.finditer(text):
        ends = [each.end() for each in _SENTENCE_END.finditer(text, 0, match.start())]
        sentence = ends[-1] if ends else 0
        if match.start() < end or _NEGATED_BEFORE.search(text, sentence, match.start()):
            continue
        answer, end = _statement(text, match.end())
        negated = match[0].endswith("n't") or _NEGATED.match(answer)
        if negated:
            but = _BUT.search(answer)
            answer = answer[but.end() :] if but else ""
        asked = text[end - 1 : end] in {"?", "？"}
        stated = None if asked else _cut(answer) or (None if negated else stated)
    options = {match[1] for match in _OPTION.finditer(text)}
    if stated is None and len(options) == 1:
        return options.pop()
    is_short = "\n" not in text and len(re.findall(r"[^\W\d_]{2,}", text)) <= _FEW
    if end == 0 and is_short and not _SENTENCE.match(text):
        return _cut(text, reasons=False)  # nothing but an answer
    withdrawn = list(_WITHDRAWN.finditer(text, max(end - 1, 0)))
    if withdrawn:
        return _concluded(text[withdrawn[-1].end() :])
    return stated if end else _concluded(text)


def _statement(text: str, start: int) -> tuple[str, int]:
    """Return what is stated from a place on, and where it ends."""
    filler = _FILLER.match(text, start)
    start = filler.end() if filler else start
    for match in _SENTENCE_END.finditer(text, start):
        in_formula = len(re.findall(r"(?<!\\)\$", text[start : match.start()])) % 2
        if match.start() > start and (not in_formula or match[0] == "\n"):
            return text[start : match.start()], match.end()
    return text[start:], len(text)


def _cut(statement: str, *, reasons: bool = True) -> str | None:
    """Return the answer of a statement without its reason, delimiters and punctuation."""
    answer = _REASON.sub("", statement, count=1) if reasons else statement
    formulas = _formulas(answer)
    outside = _MATH.sub(" ", answer)
    if formulas and not re.search(r"\bor\b|\d|\bnot\b", outside):
        joined = re.fullmatch(r"[\s,;]*(?:\band\b[\s,;]*)?", outside)
        answer = ", ".join(formulas) if joined or len(formulas) > 1 else formulas[0]
    answer = re.sub(
        r"^(?:\s|option\b|choice\b|either\b|the\b(?=\s+\w+$)|:)+", "", answer, flags=re.I
    )
    answer = answer.strip(" \t\n*_\"'“”.,;:。，！!")
    return answer or None


def _formulas(text: str) -> list[str]:
    return ["".join(match.groups("")) for match in _MATH.finditer(text)]


def _concluded(text: str) -> str | None:
    """Return the only quantity of the conclusion, or what follows "is" in it."""
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    sentences = [text[start:end].strip() for start, end in pairwise(ends)]
    sentences = [each for each in sentences if re.search(r"\w", each)]
    concluding = [each for each in sentences if _CONCLUDED.search(each)]
    if not sentences:
        return None
    sentence = (concluding or sentences)[-1].rstrip(".!。！ \n")
    if _NEGATED_BEFORE.search(sentence) or sentence.endswith(("?", "？")):
        return None
    clause = _REASON.sub("", sentence)
    formulas = _formulas(clause)
    if len(formulas) == 1 and not _QUANTITY.search(_MATH.sub(" ", clause)):
        return formulas[0].strip(" .,")
    point = re.search(r"(?:\b(?:is|are|at)\b|=)\s*(\(.*\)|\[.*\]|\\\{.*\})$", clause)
    if point:
        return point[1]
    value = clause.rpartition("=")[2]
    quantities = list(dict.fromkeys(match[0] for match in _QUANTITY.finditer(value)))
    if len(quantities) == 1:
        return quantities[0]
    if quantities:
        return None
    named = re.search(r"\b(?:is|are|was)\b(?!.*\b(?:is|are|was)\b)\s*(.+)", clause)
    return _cut(named[1]) if named else None


def judge(answer: str, response: str) -> bool:
    """Return whether the response's final answer equals `answer`, without a time limit.

    Args:
        answer: the correct answer, or a solution with a marked final answer.
        response: a model's response.
    """
    from toa_trl.rewards.equality import equal

    given = final_answer(response)
    if given is None:
        given = stated_answer(response)
    if given is None or len(given) > LONGEST:
        return False
    return equal(normalise(final_answer(answer) or answer), normalise(given))


def boxed(answer: str) -> str:
    r"""Return \boxed{answer}, as a response ends."""
    return rf"\boxed{{{answer}}}"
