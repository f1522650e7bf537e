"""A sentence read as claims: which figure it gives of which run, which way it says a quantity went, against what.

Claims about what should, might or is meant to happen are none. A clause is what stands between commas and
conjunctions; a number or a direction belongs to the nearest quantity in its clause, or to the last one named before.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from agent.vocabulary import Mention, Quantity, mentions

Way = Literal["up", "down", "better", "worse", "same", "best", "worst", "highest", "lowest"]
PREVIOUS = -1  # the run before the one a claim is about
BASELINE = 0


@dataclass(frozen=True)
class Direction:
    """That a quantity (None: results as a whole) of a run went some way against another run."""

    quantity: Quantity | None
    said: str
    way: Way
    negated: bool
    subject: int | None  # None: the run of the section
    reference: int | None  # None: nothing is named
    trend: bool
    word: str


@dataclass(frozen=True)
class Figure:
    """A number given of a quantity. `kind`: a value, a difference from the reference, per cent of it, or a factor."""

    quantity: Quantity
    said: str
    number: str
    kind: Literal["value", "difference", "percent", "factor"]
    subject: int | None
    reference: int | None
    either: bool = False  # of the subject or the reference, which of the two the sentence leaves open


@dataclass(frozen=True)
class Reading:
    directions: list[Direction]
    figures: list[Figure]
    trends: list[Quantity]  # of which a trend is claimed, and no direction
    success: list[str]  # words that claim that a run worked, and nothing one could measure


_UP = (
    r"increas(?:e[sd]?|ing)|higher|rises?|rose|risen|rising|gr[eo]ws?|grown|larger|greater|climb(?:s|ed|ing)?|raise[sd]|went up"
    r"|exceed(?:s|ed)?|above|soar(?:s|ed)|doubl(?:es|ed|ing)|tripl(?:es|ed)|elevated|bigger|gain(?:s|ed)?|upwards?|jump(?:s|ed)"
)
_DOWN = (
    r"decreas(?:e[sd]?|ing)|lower(?:s|ed|ing)?|f[ae]ll(?:s|en|ing)?|drop(?:s|ped|ping)?|reduc(?:e[sd]|ing|tions?)|declin(?:e[sd]?|ing)"
    r"|smaller|fewer|less|shr[aiu]nk(?:s|en)?|below|halv(?:es|ed|ing)|cut(?:s|ting)?|went down|downwards?|diminish(?:es|ed)"
    r"|sank|plummet(?:s|ed)|under(?! )"
)
_BETTER = (
    r"improv(?:e[sd]?|ing|ements?)|better|superior(?:ity)?|out-?perform(?:s|ed|ing)?|enhanc(?:e[sd]|ing|ements?)|beats?|beaten"
    r"|surpass(?:es|ed|ing)?|boost(?:s|ed|ing)?|stronger|more (?:effective|accurate|faithful|favou?rable)|wins?|won"
)
_WORSE = (
    r"worse(?:n(?:s|ed|ing)?)?|degrad(?:e[sd]?|ing|ations?)|deteriorat(?:e[sd]?|ing|ion)|inferior|hurts?|harm(?:s|ed)"
    r"|under-?perform(?:s|ed)?|suffer(?:s|ed)?|regress(?:es|ed|ion)|weaker|poorer"
)
_SAME = (
    r"unchanged|the same|same|identical|similar|comparable|maintain(?:s|ed|ing)?|preserv(?:es|ed|ing)|equal(?:s|led)?|on par"
    r"|stable|constant|match(?:es|ed)|no (?:\w+ )?(?:change|difference)|within (?:the )?noise|did not change"
)
_WAYS: tuple[tuple[Way, str], ...] = (
    ("highest", r"highest|largest|greatest|most"),
    ("lowest", r"lowest|smallest|least|fewest|minimal"),
    ("best", r"best|optimal|state[- ]of[- ]the[- ]art"),
    ("worst", r"worst|poorest"),
    ("same", _SAME),
    ("better", _BETTER),
    ("worse", _WORSE),
    ("up", _UP),
    ("down", _DOWN),
)
_WAY = re.compile(r"\b(?:" + "|".join(f"(?P<{way}>{words})" for way, words in _WAYS) + r")\b", re.IGNORECASE)
_TREND = re.compile(
    r"\b(?:trend\w*|stead(?:y|ily)|consistent\w*|monoton\w+|progressive\w*|gradual\w*|with (?:each|every) (?:run|step|variant)"
    r"|(?:across|over|through(?:out)?) (?:the |all |all of the |our |successive )*(?:runs|experiments|variants|configurations"
    r"|settings|iterations|(?:course of )?training|epochs|steps)|run after run|from run to run|continu\w+ to|kept|keeps"
    r"|correlat\w+|as (?:the )?[\w ]{1,30} (?:increases|decreases|grows|rises|falls)|throughout)\b",
    re.IGNORECASE,
)
_VERB = r"(?:improve|reduce|increase|decrease|lower|raise|enhance|boost|achieve|outperform|minimi[sz]e|maximi[sz]e|maintain|preserve|match|beat|cut|drop|fall|rise|grow|get|obtain|reach|keep|help|make|produce|yield|provide|balance|prevent|avoid|control)"
HYPOTHETICAL = re.compile(
    r"\b(?:should|would|could|may|might|can(?! be seen)|cannot|will|shall|(?<!as )(?<!than )expect(?:s|ed|ation|ing)?|hop(?:e[sd]?|ing)"
    r"|aim(?:s|ed|ing)?|(?<!as )intend\w*|goal|hypothesi[sz]\w*|(?<!as )predict(?:s|ed)?|if|whether|designed|meant|encourag(?:e|es|ing)"
    r"|allow(?:s|ing)?|potential(?:ly)?|likely|plan(?:s|ned)?|next|attempt(?:s|ed|ing)?|tr(?:y|ies|ying|ied)|seek(?:s|ing)?"
    r"|explor(?:e[sd]?|ing)|investigat(?:e[sd]?|ing)|motivat\w+|so that|let's|we need|want(?:s|ed)?|believe[sd]?|try to see"
    r"|for (?:better|improved|higher|lower|more)"
    rf"|(?<!continued )(?<!continues )(?<!continue )(?<!managed )(?<!able )(?<!helped )(?<!led )(?<!seems )(?<!appears )(?<!fails )"
    rf"(?<!failed )(?<!unable )to (?:further |also |better )?{_VERB})\b",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|without|neither|nor|\w+n't|fail(?:s|ed)? to|unable to|instead of|rather than|lack of|hardly|nothing)\b"
    r"(?:\s+[\w-]+){0,3}\s*$",
    re.IGNORECASE,
)
_RUN = r"(?:run|experiment) ?#?(?P<{0}number>\d+)"
_WHICH = (
    r"(?:(?P<{0}baseline>(?:the )?(?:original )?baseline(?: (?:model|run|sae|experiment))?|run 0|the original (?:model|sae|version))|"
    + _RUN
    + r"|(?P<{0}previous>(?:the )?(?:previous|prior|preceding|last|earlier) (?:run|experiment|step|variant|configuration|one|result)s?"
    r"|the (?:run|step) before)|(?P<{0}own>(?:this|the current|our) (?:run|experiment|variant|model|method|approach|configuration)"
    r"|the (?:variant|new \w+)))"
)
_NAMED = re.compile(r"\b" + _WHICH.format("") + r"(?:['’]s)?\b", re.IGNORECASE)
_AGAINST = re.compile(
    r"\b(?:than|compared (?:to|with)|(?:in |by )?comparison (?:to|with)|relative to|over|versus|vs\.?|against|(?:up |down )?from"
    r"|beat(?:s|en|ing)?|out-?perform\w*|surpass\w*|exceed(?:s|ed|ing)?|improv\w+ (?:up)?on|beside|as|to|match(?:es|ed|ing)?|with|of)"
    r"\s+(?:(?:that|those|what|the (?:one|value|values|figure|score|results?)) (?:of|in|from|for) |in )*(?:the )?"
    + _WHICH.format("r_"),
    re.IGNORECASE,
)
_LOOSE = re.compile(r"(?:\bas|\bto|\bwith|\bof)\s[^,;]*$", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[;]|,(?!\d)(?!\s*top \d)|:\s|\s[–—]\s|\(|\)|\b(?:but|while|whereas|although|though|despite|however|which|because|since|yet|except)\b"
    r"|\b(?:resulting in|leading to|suggesting|indicating|showing|demonstrating|confirming)\b"
    r"|\band (?=(?:the|its|a|an|run|this|with|also|improv|reduc|increas|decreas|lower|higher|outperform|achiev)\b)",
    re.IGNORECASE,
)
_SUCCESS = re.compile(
    r"\b(?:success(?:es|ful|fully)?|succeed(?:s|ed)|achiev(?:e[sd]?|ing|ements?)|effective(?:ly|ness)?|promising|breakthrough"
    r"|excellent|impressive|outstanding|remarkabl[ey]|robust(?:ly)?|converge[sd](?: well)?|works? (?:very )?well|worked(?: well)?"
    r"|as (?:expected|hoped|intended|predicted)|confirm(?:s|ed|ing)|validate[sd]|demonstrate[sd]?|prove[sdn]|completed|learned well"
    r"|trained (?:well|properly|stably)|strong (?:results?|performance|baseline)|good (?:results?|performance))\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[+\-−–]?)(?P<digits>\d[\d,]*(?:\.\d+)?(?:[eE][+\-−]?\d+)?|\.\d+)(?P<unit>\s?%|\s?(?:percent|per cent)\b|[x×](?!\w)|-?fold\b|\s(?:times|fold)\b|[kKM]\b)?(?!\w)"
)
_NOT_A_FIGURE_BEFORE = re.compile(
    r"(?:\b(?:K|k|layer|seeds?|batch(?: size)?|lr|learning rate|rate|coefficient|weight|step|at step|top|threshold|p|alpha|beta|lambda"
    r"|gamma|tau|run|runs|experiment|figure|fig\.?|table|tier|width|d_sae|dim(?:ension)?|epoch|target|budget|version|expansion(?: factor)?"
    r"|blocks?|of the|factor|penalty|size|level|section|after|for|every)\s*(?:of|=|:|to|was|is)?\s*[#~≈]?$|±\s*$|[=*/^_]$)",
    re.IGNORECASE,
)
_NOT_A_FIGURE_AFTER = re.compile(
    r"\s*-?(?:steps?|training steps|tokens?|runs?|seeds?|layers?|tiers?|epochs?|hours?|minutes?|seconds?|GB|MB|datasets?|features|latents(?! per| on| active)"
    r"|dimension\w*|dim\b|levels?|heads?|standard|sigma|million|billion|thousand|bit|of the (?:latents|training|tokens|steps|data))\b",
    re.IGNORECASE,
)
_LINK = re.compile(r"\b(?:K|layer|seed|batch|coefficient|rate|weight|width|steps?|tokens|because|using|when|where)\b")


def read(sentence: str, keys: Iterable[str] = ()) -> Reading:
    """What a sentence claims; `keys` are names that results use besides the known quantities."""
    found = mentions(sentence, keys)
    directions: list[Direction] = []
    figures: list[Figure] = []
    trends: list[Quantity] = []
    success: list[str] = []
    last: Mention | None = None
    subject: int | None = None
    hypothetical_before = False
    for start, end, opened in _clauses(sentence):
        clause = sentence[start:end]
        inside = [each for each in found if start <= each.start < end]
        claims = not HYPOTHETICAL.search(clause) and not (hypothetical_before and opened in ("resulting in", "leading to", "which"))
        against, named = _named(clause)
        if named is not None:
            subject = named
        if claims:
            own = [replace(each, start=each.start - start, end=each.end - start) for each in inside]
            went = _directions(clause, own, last, subject, against, opened)
            directions += went
            if not went and _TREND.search(clause):
                trends += [each.quantity for each in own]
            figures += _figures(clause, own, last, subject, against, opened)
            if not against or against != BASELINE:
                success += [m.group() for m in _SUCCESS.finditer(clause) if not _NEGATION.search(clause[: m.start()])]
        hypothetical_before = not claims
        last = inside[-1] if inside else last
    return Reading(directions, figures, trends, success)


def _clauses(sentence: str) -> list[tuple[int, int, str]]:
    """Start, end and the word or mark before, of each clause."""
    found, start, opened = [], 0, ""
    for mark in _CLAUSE.finditer(sentence):
        found.append((start, mark.start(), opened))
        start, opened = mark.end(), mark.group().strip().lower()
    found.append((start, len(sentence), opened))
    return [(a, b, mark) for a, b, mark in found if sentence[a:b].strip()]


def _which(match: re.Match[str], prefix: str) -> int | None:
    if match[f"{prefix}number"]:
        return int(match[f"{prefix}number"])
    if match[f"{prefix}baseline"]:
        return BASELINE
    return PREVIOUS if match[f"{prefix}previous"] else None


def _named(clause: str) -> tuple[int | None, int | None]:
    """The run that a clause compares with, and the one that it is about; None where it names none."""
    against = None
    for match in _AGAINST.finditer(clause):
        tight = re.match(r"(?:as|to|with|of)\b", match.group(), re.IGNORECASE)
        if tight and not re.search(r"\b(?:same|identical|similar|comparable|equal|close|par|good|well|high|low|match\w*)\b", clause, re.I):
            continue
        against = (_which(match, "r_"), match.start(), match.end())
    subject = None
    for match in _NAMED.finditer(clause):
        if against and against[1] <= match.start() < against[2] + 1:
            continue
        if match["own"]:
            continue
        if subject is None:
            subject = _which(match, "")
    return (against[0] if against else None), subject


def _directions(
    clause: str, inside: list[Mention], last: Mention | None, subject: int | None, against: int | None, opened: str
) -> list[Direction]:
    ways = [
        match
        for match in _WAY.finditer(clause)
        if not re.match(r"\s*(?:tiers?|layers?|level|bound|row|learning|rate|latents?|features?|dimension|ranks?)\b", clause[match.end() :])
        and not re.search(r"\bat (?:the )?$", clause[: match.start()])
        and not (match.group().lower() == "most" and re.match(r"\s+(?:of|general|specific)\b", clause[match.end() :]))
        and not re.search(r"\b(?:learning rate|coefficient|penalty|weight|batch size|threshold|width|K)\s+(?:was |is |were |has been )?$", clause[: match.start()])
    ]
    if not ways:
        return []
    trend = bool(_TREND.search(clause))
    about = inside
    if not about and last and re.match(r"\s*(?:it |this |that )?(?:is|was|are|were|has|down|up|lower|higher|a|an|compared|continu|further|then|still)\b", clause, re.I):
        about = [last]
    said: list[Direction] = []
    used: set[int] = set()
    for mention in about:
        inherited = mention is last and not inside
        way = min(ways, key=lambda m: 0 if inherited else _distance(m, mention))
        used.add(way.start())
        said.append(_direction(clause, way, mention.quantity, mention.text, subject, against, trend))
    for way in ways:
        if way.start() not in used and way.lastgroup in ("better", "worse", "best") and _of_results(clause, way, against, opened):
            said.append(_direction(clause, way, None, "", subject, against, trend))
    return said


def _distance(way: re.Match[str], mention: Mention) -> int:
    return max(mention.start - way.end(), way.start() - mention.end, 0)


def _direction(
    clause: str, way: re.Match[str], quantity: Quantity | None, said: str, subject: int | None, against: int | None, trend: bool
) -> Direction:
    further = re.search(r"\b(?:further|even|again)\b", clause, re.IGNORECASE)
    reference = PREVIOUS if further and against is None else against
    negated = bool(_NEGATION.search(clause[: way.start()])) and way.lastgroup != "same"
    return Direction(quantity, said, way.lastgroup or "same", negated, subject, reference, trend, way.group())  # pyright: ignore


def _of_results(clause: str, way: re.Match[str], against: int | None, opened: str) -> bool:
    """Whether better or worse is said of results as a whole, rather than of a part of the method."""
    return against is not None or bool(
        re.search(
            r"\b(?:performance|results?|scores?|metrics?|overall|quality|everything|across the board|improvements?)\b"
            r"|^\s*(?:this|it|run \d+|the (?:model|run|variant|sae))(?: \w+)? (?:improv|outperform|degrad|enhanc)",
            clause,
            re.IGNORECASE,
        )
    )


def _figures(
    clause: str, inside: list[Mention], last: Mention | None, subject: int | None, against: int | None, opened: str
) -> list[Figure]:
    found: list[Figure] = []
    numbers = [
        match
        for match in _NUMBER.finditer(clause)
        if not _NOT_A_FIGURE_BEFORE.search(clause[: match.start()])
        and not (not match["unit"] and _NOT_A_FIGURE_AFTER.match(clause[match.end() :]))
        and not any(each.start <= match.start() < each.end for each in inside)
    ]
    for place, match in enumerate(numbers):
        before, after = clause[: match.start()], clause[match.end() :]
        mention = _bound(clause, match, inside, last, opened)
        if mention is None or _another_of(clause, match, mention, numbers[place + 1 :]):
            continue
        kind = _kind(match, before, after)
        who, reference, either = _whose(clause, match, subject, against, opened)
        text = match["sign"].replace("−", "-").replace("–", "") + match["digits"] + (match["unit"] or "").strip()
        found.append(Figure(mention.quantity, mention.text, text, kind, who, reference, either))
    return found


def _bound(clause: str, match: re.Match[str], inside: list[Mention], last: Mention | None, opened: str) -> Mention | None:
    """The quantity a number belongs to: the last named before it, or the one right after it."""
    before = [each for each in inside if each.end <= match.start()]
    after = [each for each in inside if each.start >= match.end()]
    if after and re.fullmatch(r"\s*(?:lower |higher |better |worse |in |drop in |increase in |reduction in |improvement in |of the )?", clause[match.end() : after[0].start]):
        between = clause[before[-1].end : match.start()] if before else "x" * 99
        if not re.fullmatch(r"\s*(?:\(|of|is|was|=|:|at)?\s*", between):
            return after[0]
    if before:
        between = clause[before[-1].end : match.start()]
        return before[-1] if len(between.split()) <= 9 and not _LINK.search(between) else None
    continues = re.match(
        r"\s*(?:(?:compared|vs|versus|against|from|to|at|of|is|was|the|a|an|in|for|with|down|up|by|baseline\w*|it|this|that|reach\w*|drop\w*|fell|rose"
        r"|run \d+|only|just|about|around|respectively|[-+~≈]?[\d.]|[a-z]+ed\b))", clause, re.IGNORECASE,
    )
    return last if last and continues and len(clause[: match.start()].split()) <= 8 and not _LINK.search(clause[: match.start()]) else None


def _another_of(clause: str, match: re.Match[str], mention: Mention, later: list[re.Match[str]]) -> bool:
    return False


def _kind(match: re.Match[str], before: str, after: str) -> Literal["value", "difference", "percent", "factor"]:
    unit = (match["unit"] or "").strip().lower()
    changes = re.match(
        r"\s*(?:[\w-]+ )?(?:lower|higher|reduction|improvement|increase|decrease|gain|drop|better|worse|relative|less|more|fewer|rise|decline|fewer|points?)\b",
        after, re.IGNORECASE,
    )
    by = re.search(r"\b(?:by|differs? by|difference of|change of|(?:increase|decrease|reduction|improvement|drop|gain|rise) of)\s*(?:about|around|roughly|approximately|only|over|nearly|almost|~)?\s*$", before, re.IGNORECASE)
    if unit in ("x", "×", "fold", "-fold", "times"):
        return "factor"
    if unit in ("%", "percent", "per cent"):
        return "percent" if changes or by else "value"
    return "difference" if by or match["sign"] == "+" or (changes and not re.match(r"\s*(?:than|points?)", after)) else "value"


def _whose(
    clause: str, match: re.Match[str], subject: int | None, against: int | None, opened: str
) -> tuple[int | None, int | None, bool]:
    """Which run a number is given of, and the other run there is talk of; the last: it may be of either."""
    before, after = clause[: match.start()], clause[match.end() :]
    reference = against if against is not None else None
    if re.search(r"\bfrom\s*(?:about|around|roughly|approximately|~)?\s*(?:the )?(?:baseline(?:'s)?|run \d+(?:'s)?)?\s*(?:value )?(?:of )?\s*$", before, re.IGNORECASE) or re.match(
        r"\s*(?:→|->|-->|to\s+[-+]?[\d.])", after
    ):
        return (against if against is not None else PREVIOUS), BASELINE, against is None
    of = re.match(r"\s*(?:\w+ )?(?:for|in|of|by|from|with|\()\s*(?:the |that of )*" + _WHICH.format(""), after, re.IGNORECASE)
    if of:
        return _which(of, ""), reference, False
    near = None
    for named in _AGAINST.finditer(before):
        near = named
    if near and not re.search(r"\bto\b[^,]*$", before[near.end() :]):
        return _which(near, "r_"), subject, False
    if re.search(r"\b(?:vs\.?|versus|compared (?:to|with)|than|against|instead of|rather than)\s*(?:a |an |the |about |around |only |just |~)*\s*$", before, re.IGNORECASE):
        return (against if against is not None else PREVIOUS), BASELINE, against is None
    own = None
    for named in _NAMED.finditer(before):
        own = named
    if own and not own["own"]:
        return _which(own, ""), reference, False
    if own and own["own"]:
        return None, reference, False
    return subject, reference, False
