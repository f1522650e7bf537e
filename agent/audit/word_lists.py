"""The words by which the audit recognises directions, runs, numbers and intentions in prose."""

import re


def words(text: str) -> str:
    r"""Return a pattern for any of the words; within one, ~ stands for a space."""
    return "(?:" + "|".join(text.replace("~", r"\s").split()) + ")"


def pattern(text: str) -> re.Pattern[str]:
    r"""Compile a pattern for any of the words, whole and in any case."""
    return re.compile(rf"\b{words(text)}\b", re.IGNORECASE)


WAYS = {  # in the order in which they are tried
    "highest": "peak(?:s|ed) highest largest greatest most(?!~(?:of|general|specific)\\b)",
    "lowest": "lowest smallest least fewest minimal",
    "best": "best optimal state[-~]of[-~]the[-~]art",
    "worst": "worst poorest",
    "same": r"""unchanged the~same(?!~(?:way|direction)) same(?!~(?:way|direction)) identical similar comparable
        maintain(?:s|ed|ing)? preserv(?:es|ed|ing)
        equal(?:s|led)? on~par stable constant match(?:es|ed) no~(?:\w+~)?(?:change|difference)
        no~(?:\w+~)?(?:effect~on|different~from) (?:in~line|ties|tied)~with did~not~respond unaltered
        (?:holds?|held)~(?:steady|up|firm) (?:not|hardly|barely|scarcely)~affected
        (?:practically|essentially|virtually|about|nearly|almost)~(?:that~of|as~(?:good|high|low)~as)
        within~(?:\w+~)?noise too~small~to~(?:tell|see|be~told) indistinguishable lost~in~(?:the~)?noise
        (?:stay(?:s|ed)?|remain(?:s|ed)?)~(?:put|(?:at~its|where)~\w+) (?:back~)?(?:at|to)~the~level(?=~of)
        back~(?:at|to)(?=~the~baseline.s) flat immune unaffected untouched
        (?:hardly|barely|scarcely|do(?:es)?~not|did~not)~(?:move[sd]?|change[sd]?|differ(?:s|ed)?|budge[sd]?|shift(?:s|ed)?)
        as~(?:well|good|high|low|much|many)~as(?=~(?:it~was|in~run|in~the~baseline|before|the~baseline.s\b))
        (?:leaves?|left)~(?:\w+~){1,4}where~it~was""",
    "better": r"""improv(?:e[sd]?|ing|ements?) better superior(?:ity)? out-?perform(?:s|ed|ing)?
        enhanc(?:e[sd]|ing|ements?) beats? beaten edge[sd]?~out tops surpass(?:es|ed|ing)? boost(?:s|ed|ing)?
        stronger wins? won easier
        recover(?:s|ed)(?=\s*[.;]?$) ahead(?=~of|\s*[.;]?$) (?:comes?|came|ranks?)~(?:before|ahead|above)
        more~(?:effective|accurate|faithful|favou?rable)""",
    "worse": r"""worse(?:n(?:s|ed|ing)?)? degrad(?:e[sd]?|ing|ations?) deteriorat(?:e[sd]?|ing|ion) inferior
        hurts? harm(?:s|ed) do(?:es|ing)?~damage did~damage damag(?:es|ed) lags?~behind trails? loses~to 
        falls~short(?=~of) under-?perform(?:s|ed)? suffer(?:s|ed)? regress(?:es|ed|ion) weaker poorer harder behind
        costs(?!~(?:nothing|less|more|no|little|next|hardly|almost|compute|time)\b)
        (?:takes?|took)~(?:a~)?(?:\w+~)?hit at~(?:a|some|considerable|great)~(?:\w+~)?(?:price|cost|expense)""",
    "up": r"""sparser (?:is|are|was|were|goes|went|moved|comes?|came)~(?:\w+ly~|now~)?up(?!~to)
        (?:brings?|brought|drives?|drove|push(?:es|ed)|pull(?:s|ed))~(?:\w+~){1,4}up increas(?:e[sd]?|ing)
        higher rises? rose risen rising gr[eo]ws? grown larger greater climb(?:s|ed|ing)? raise[sd] went~up
        exceed(?:s|ed)? above soar(?:s|ed) doubl(?:es|ed|ing) tripl(?:es|ed) elevated bigger gained
        (?<!the~)(?<!this~)(?<!any~)(?<!a~)gains?
        upwards? jump(?:s|ed) lift(?:s|ed)? up(?=~(?:by|from|on|as~well)\b|\s*$)""",
    "down": r"""denser (?:is|are|was|were|goes|went|moved|comes?|came)~(?:\w+ly~|now~)?down
        (?:brings?|brought|drives?|drove|push(?:es|ed)|pull(?:s|ed))~(?:\w+~){1,4}down decreas(?:e[sd]?|ing)
        lower(?:s|ed|ing)? f[ae]ll(?:s|en|ing)? drop(?:s|ped|ping)? declin(?:e[sd]?|ing)
        reduc(?:e[sd]?|ing|tions?) smaller fewer less shr[aiu]nk(?:s|en)? below halv(?:es|ed|ing) cut(?:s|ting)?
        went~down downwards? diminish(?:es|ed) s[aiu]nks? plummet(?:s|ed) down(?=~(?:by|from|to|on|as~well)\b|\s*$)
        slip(?:s|ped)? slid(?:es?)? dip(?:s|ped)? collapse[sd]? plunge[sd]? los(?:es|t)(?!~(?:in|less|more|no|little)\b)
        (?:gives?|gave)~up(?!~(?:less|more|no|little)\b)""",
}
WAY = re.compile(r"\b(?:" + "|".join(f"(?P<{way}>{words(text)})" for way, text in WAYS.items()) + r")\b", re.IGNORECASE)
NOT_A_WAY_AFTER = re.compile(
    r"[\s-]*"
    + words("effects? schedules? K tiers? layers? level bound row learning rate latents? features? dimension ranks?")
    + r"\b|\s(?:than )?(?:the|our|this|that) (?:smallest (?:effect|difference)|threshold|budget|limit|tolerance)\b",
    re.IGNORECASE,
)
NOT_A_WAY_BEFORE = re.compile(
    rf"\b(?:at (?:the )?|{words('learning~rate coefficient penalty weight batch~size threshold width K')}"
    rf" {words('was is were has~been')} |{words('lose lost loses costs? gave~up gives~up')} (?:the )?)$",
    re.IGNORECASE,
)
EXTREME = {"better": "best", "worse": "worst", "up": "highest", "down": "lowest"}  # than all others
IDIOM = re.compile(  # how to read an axis
    r"\b(?:higher|lower|larger|smaller|more|less|fewer)(?: \w+)? (?:is|are|means?|indicates?|being|=) "
    r"(?:better|worse|more|less)(?: \w+)?",
    re.IGNORECASE,
)

TREND_WORD = pattern(r"trend\w* stead(?:y|ily) monoton\w+ progressive\w* gradual\w* correlat\w+ scales?~with")
TREND = re.compile(
    TREND_WORD.pattern
    + r"|\b(?:consistent\w*|each time|every time|continu\w+ to|kept|keeps|throughout|run after run|from run to run"
    r"|with (?:each|every) (?:run|step|variant)"
    r"|(?:across|over|through(?:out)?) (?:the |all |all of the |our |successive )*(?:course of )?"
    rf"{words('runs experiments variants configurations settings iterations training epochs steps')}"
    r"|as (?:the )?[\w ]{1,30} (?:increases|decreases|grows|rises|falls))\b",
    re.IGNORECASE,
)
WITHIN_TRAINING = re.compile(
    r"\b(?:over|during|throughout|in|across|through)(?: the)?(?: (?:course|whole|entire)(?: of)?)? (?:the )?"
    r"(?:training|steps|epochs|optimi[sz]ation)\b|training (?:curves?|progress\w*|dynamics)"
    r"|learning curves?|as training",
    re.IGNORECASE,
)

_VERB = words(
    r"""improve reduce increase decrease lower raise enhance boost achieve outperform minimi[sz]e maximi[sz]e
        maintain preserve match beat cut drop fall rise grow get obtain reach keep help make produce yield
        provide balance prevent avoid control"""
)
_HAPPENED = re.sub(  # after these an infinitive says what happened
    r"(\w+) ?",
    r"(?<!\1 )",
    "continued continues continue managed able helped led seems appears fails failed unable one first only last",
)
HYPOTHETICAL = re.compile(
    r"\b(?:"
    + words(
        r"""should would could may might can(?!~be~seen) cannot will shall
            (?<!as~)(?<!than~)expect(?:s|ed|ation|ing)? hop(?:e[sd]?|ing) aim(?:s|ed|ing)? (?<!as~)intend\w*
            goal hypothesi[sz]\w* (?<!as~)predict(?:s|ed)? if whether designed meant encourag(?:e|es|ing)
            allow(?:s|ing)? potential(?:ly)? likely plan(?:s|ned)? next attempt(?:s|ed|ing)?
            tr(?:y|ies|ying|ied) seek(?:s|ing)? explor(?:e[sd]?|ing) investigat(?:e[sd]?|ing) motivat\w+ so~that
            we~need want(?:s|ed)? believe[sd]? for~(?:better|improved|higher|lower|more)
            (?:term|penalty|loss|mechanism|regulari[sz]er|module|constraint|objective|schedule)s?~(?:that|which)"""
    )
    + rf"|{_HAPPENED}to (?:further |also |better )?{_VERB})\b",
    re.IGNORECASE,
)
NEGATION = re.compile(
    r"\b"
    + words(r"not no never without neither nor \w+n.t fail(?:s|ed)?~to unable~to instead~of rather~than lack~of hardly")
    + r"\b(?:\s+[\w-]+){0,3}\s*$|\bnothing(?:\s+\w+)?\s*$|\b(?:none|neither)(?:\s+[\w\'’-]+){0,7}\s*$",
    re.IGNORECASE,
)

WHICH = (  # a run, by whatever name; {0} is put before the names of its groups
    r"(?:(?P<{0}baseline>(?:the )?(?:original )?baseline(?: (?:model|run|sae|experiment))?|run 0"
    r"|the original (?:model|sae))"
    r"|(?:run|experiment) ?#?(?P<{0}number>\d+)"
    r"|(?P<{0}previous>(?:the )?(?:previous|prior|preceding|last|earlier) "
    r"(?:run|experiment|step|variant|configuration|one|result)s?"
    r"|the (?:run|step) before)"
    r"|(?P<{0}own>(?:this|the current|our) (?:run|experiment|variant|model|method|approach|configuration)"
    r"|the (?:variant|new \w+)))"
)
NAMED = re.compile(r"\b" + WHICH.format("") + r"(?:['’]s)?\b", re.IGNORECASE)
NO_SUBJECT_BEFORE = re.compile(
    r"\b(?:to|until|since|before|after|like|unlike|beyond|all|any|every|both|other)\s*$", re.IGNORECASE
)
AGAINST = re.compile(
    r"\b(?:"
    + words(
        r"""than (?:superior|inferior)~to (?:in~|by~)?comparison~(?:to|with) compared~(?:to|with) relative~to
            over versus vs\.? against below above (?:up~|down~)?from from~[\d.,]+%?(?=~(?:in|for|of|at)\b)
            beat(?:s|en|ing)? edge[sd]?~out tops trails? out-?perform\w* surpass\w* exceed(?:s|ed|ing)?
            improv\w+~(?:up)?on ahead~of behind
            beside (?:at|to)(?=~the~baseline.s~(?:level|value)) (?:at|to)~the~level~of loses~to falls~short~of
            match(?:es|ed|ing)? (?:comes?|came|ranks?)~(?:before|ahead~of|above)"""
    )
    + r"|(?P<loose>as|to|with|of))\s+(?:both )?"
    r"(?:(?:it|they) (?:do(?:es)?|did|was|were|is|are) (?=with |in |for )(?:with )?)?"
    r"(?:(?:that|those|what|the (?:one|value|values|figure|score|results?)) (?:of|in|from|for) |in |for )*"
    + WHICH.format("r_")
    + r"(?:['’]s)?(?: and (?:that of |in )?(?P<and>"
    + WHICH.format("s_")
    + r"))?",
    re.IGNORECASE,
)
ALIKE = pattern(
    r"""noise same identical similar comparable equal close par good well high low match\w* line ties tied
        practically essentially virtually nearly almost"""
)  # as, to, with a run
ALONGSIDE = pattern(  # what is said next is of no one of two quantities
    r"mirrors? tracks? follows? parallels? opposite inverse(?:ly)? correlat\w+ like unlike"
)
OTHERS = re.compile(
    r"\b(?:than|outperform\w*|beat\w*|surpass\w*|exceed\w*|over|of|among|across)\s+(?:(?:in|for|that of|those of) )?"
    r"(?:all|any|every|both|each)(?: of)?(?: the)?(?: other| earlier| previous| prior| preceding)* "
    rf"{words('runs? variants? experiments? configurations? others? models?')}\b",
    re.IGNORECASE,
)

CLAUSE = re.compile(
    r"[;]|,(?!\d)(?!\s*top \d)|:\s|\s[–—]\s|\(|\)"
    rf"|\b{words('but while whereas although though despite however which because since (?<!not~)yet(?!~to) except')}\b"
    rf"|\b{words('resulting~in leading~to suggesting indicating showing demonstrating confirming')}\b"
    r"|\band (?=(?:run \d+ (?!in\b|on\b|by\b|for\b)[a-z]"
    r"|(?:the|its|a|an|this|with|also|improv|reduc|increas|decreas|lower|higher|outperform|achiev)\b))",
    re.IGNORECASE,
)
CONTINUES = re.compile(  # a clause that goes on about what was named before
    r"\s*(?:it |this |that |they |the baseline |run \d+ )?"
    + words(
        r"""is was are were has have down up a an compared continu\w* further then still slightly also even
            significantly substantially markedly both well far just much considerably clearly"""
    )
    + r"\b",
    re.IGNORECASE,
)
TOPIC = re.compile(r"\s*(?:(?:ranked|judged|measured) by|by|in terms of|as for|on|in) (?:the )?", re.IGNORECASE)
OF_RESULTS = re.compile(  # better, of results as a whole
    rf"\b{words('performance results? scores? metrics? overall quality everything across~the~board improvements?')}\b"
    r"|^\s*(?:this|it|run \d+|the (?:model|run|variant|sae))(?: \w+)? (?:improv|outperform|degrad|enhanc)",
    re.IGNORECASE,
)
SUCCESS = pattern(
    r"""success(?:es|ful|fully)? succeed(?:s|ed) achiev(?:e[sd]?|ing|ements?) effective(?:ly|ness)? promising
        breakthrough excellent impressive outstanding remarkabl[ey] robust(?:ly)? converge[sd](?:~well)?
        works?~(?:very~)?well worked(?:~well)? as~(?:expected|hoped|intended|predicted) confirm(?:s|ed|ing)
        validate[sd] demonstrate[sd]? prove[sdn] completed learned~(?:well|meaningful|useful)
        trained~(?:well|properly|stably) (?:strong|good)~(?:results?|performance)
        (?:maintain|preserv)\w*~(?:the~|good~|strong~)?(?:model~)?(?:performance|behaviou?r)"""
)
RAN = re.compile(r"success\w*|succeed\w*|achiev\w+|complet\w+|converge\w*|worked|trained\b.*", re.IGNORECASE)
PRAISE = pattern(
    r"""better improv\w+ achiev\w+ success\w* benefi\w+ promising desirable favou?rabl[ey] enhanc\w+ positive
        good great\w* strength\w* sparser superior gains? advantage\w* encouraging impressive strong
        remarkabl[ey] excellent merit"""
)
COST = pattern("but although though despite cost expense however trade not worse while only")
DISCLAIMED = re.compile(
    r"\bnot (?:directly )?(?:be )?compar\w+|\b(?:do(?:es)? not|cannot be|can't be) compare?d?|different (?:L0|sparsit)"
    r"|L0 differs|unmatched L0|not (?:a )?(?:fair|matched)|at (?:a |an )?(?:very )?different L0",
    re.IGNORECASE,
)

NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[+\-−–]?)(?P<digits>\d[\d,]*(?:\.\d+)?(?:[eE][+\-−]?\d+)?|\.\d+)"
    r"(?P<unit>\s?%|\s?(?:percent|per cent)\b|[x×](?!\w)|-?fold\b|\s(?:times|fold)\b)?(?!\w)"
)
NOT_A_FIGURE_BEFORE = re.compile(  # what a number after these counts is a setting, or a name
    r"\b"
    + words(
        r"""K layer seeds? batch(?:~size)? lr learning~rate rate coefficient weight step top threshold p alpha
            beta lambda gamma tau runs? experiment figure fig\.? table tier width d_sae dim(?:ension)? epoch
            target budget smallest~effect version expansion(?:~factor)?
            blocks? of~the factor penalty size level section after
            for every"""
    )
    + r"\s*(?:of|=|:|to|was|is)?\s*[#~≈]?$|±\s*$|[=*/^_]$",
    re.IGNORECASE,
)
NOT_A_FIGURE_AFTER = re.compile(
    r"\s*-?"
    + words(
        r"""steps? training~steps tokens? runs? seeds? layers? tiers? epochs? hours? minutes? seconds? GB MB
            datasets? features latents(?!~per|~on|~active) dimension\w* dim levels? heads? standard sigma
            million billion thousand bit of~the~(?:latents|training|tokens|steps|data)"""
    )
    + r"\b",
    re.IGNORECASE,
)
NOT_A_LINK = pattern("K layer seed batch coefficient rate weight width steps? tokens because using when where")
ABOUT = r"(?:about|around|roughly|approximately|only|over|nearly|almost|just|some|~|≈)"
CHANGE_AFTER = re.compile(
    r"\s*(?:[\w-]+ )?"
    + words(
        r"""lower higher reduction improvement increase decrease gain drop better worse relative less more fewer
            rise decline"""
    )
    + r"\b|\s(?:below|above|short)\b",
    re.IGNORECASE,
)
CHANGE_BEFORE = re.compile(
    r"\b(?:by|differs? by"
    rf"|{words('lose[sd]? lost gain(?:s|ed)? costs? g[ai]ves?~up')}"
    rf"|{words('difference change increase decrease reduction improvement drop gain rise decline')} of)"
    rf"\s*{ABOUT}?\s*$",
    re.IGNORECASE,
)
FROM_BEFORE = re.compile(
    rf"\bfrom\s*{ABOUT}?\s*(?:the )?(?:baseline(?:['’]s)?|run \d+(?:['’]s)?)?\s*(?:value )?(?:of )?\s*$", re.IGNORECASE
)
TO_AFTER = re.compile(r"\s*(?:→|->|-->|to\s+[-+]?[\d.])")
RANGE_BEFORE = re.compile(r"\b(?:between|rang(?:es|ed|ing) from)\b[^,;]*$", re.IGNORECASE)
OF_RUN_AFTER = re.compile(
    r"\s*(?:\w+ )?(?:for|in|of|by|from|with|\()\s*(?:the |that of )*" + WHICH.format(""), re.IGNORECASE
)
RIVAL = pattern("vs\\.? versus against than compared")
PLACE = re.compile(r"\b(?:at|near) (?:an? |the )?$", re.IGNORECASE)
AT_L0 = re.compile(r"\bat (?:an? )?L0 (?:of )?[\d.]+\b.*$", re.IGNORECASE)
ASIDE = re.compile(r"\d|\b(?:with|without|at|despite|by|for|matter)\b", re.IGNORECASE)
STARTS = re.compile(r"\b(?:start\w*|begin\w*|initial\w*|first|budget)\b|\bK\b", re.IGNORECASE)
BOUND_BEFORE = re.compile(
    rf"\b(?:{words('more less smaller larger fewer')} than|at least|at most|up to|within)\s*{ABOUT}?\s*$",
    re.IGNORECASE,
)
CHANGE_OF = re.compile(
    r"\b"
    + words(
        r"""loss gains? drop fall costs? price rise increase decrease reduction deficit difference gap improvement
            advantage"""
    )
    + r" (?:in|of) (?:the )?$",
    re.IGNORECASE,
)
RIVAL_BEFORE = re.compile(
    r"\b(?:vs\.?|versus|compared (?:to|with)|than|against|instead of|rather than)"
    rf"\s*(?:a |an |the |{ABOUT}\s*)*$",
    re.IGNORECASE,
)
NUMBER_CONTINUES = re.compile(  # a clause whose number is of what was named before
    r"\s*(?:"
    + words(
        r"""compared vs versus against from to at of is was the a an in for with down up by baseline\w* it this
            that reach\w* drop\w* fell rose run~\d+ only just about around respectively [a-z]+ed"""
    )
    + r"\b|[-+~≈]?[\d.])",
    re.IGNORECASE,
)
OTHER_QUANTITY = re.compile(  # the composed fraction is
    r"\s*(?:the|its|an?|their|this)(?: [\w-]+){2,4} (?:is|was|are|were|at|reach\w*) ", re.IGNORECASE
)
BEFORE_QUANTITY = re.compile(
    r"\s*(?:lower |higher |better |worse |in |(?:drop|increase|reduction|improvement) in |of (?:the )?)?"
)
RUNS = re.compile(
    r"\bruns (\d+)((?:(?:, (?:and )?| and | & | or )\d+)+|(?: ?[-–] ?| to | through )\d+)(?![.,]?\d)", re.IGNORECASE
)
FACTORS = {
    2.0: r"halv\w+|cut in half|half (?=(?:of )?th)|doubl(?:ed|es)|twice (?=as|th)",
    3.0: r"tripl(?:ed|es)|threefold",
}
CHANGED_BY_FACTOR = re.compile(  # it gave up twice as much of it
    rf"\b{words('g[ia]v(?:es?|ing)~up los(?:es?|t|ing) costs? gain(?:s|ed)? sacrificed?')}\b[^,;]*\btwice as much\b",
    re.IGNORECASE,
)
VANISHED = re.compile(  # of an improvement that is none
    r"\b(?:(?:disappear|vanish|evaporat)\w*|(?:is|are|was|goes|has) (?:gone|lost|away))\b", re.IGNORECASE
)
LOOSELY = r"(?:about|around|roughly|approximately|nearly|almost|over|~|≈)"
_L0 = r"(?:mean |average )?(?:L0|sparsity)\b"
L0_DIFFERS = re.compile(  # at a higher L0, L0 rose, at an L0 of 52 rather than 20
    rf"\b(?:{words('higher lower larger smaller different another differing more less denser sparser')}(?: \w+)? {_L0}"
    rf"|{_L0}(?:\W+\w+){{0,4}}?\W+{words('higher lower larger smaller r[oi]se[sn]? f[ae]ll(?:s|en)? up down')}\b"
    rf"|{words('increas drop reduc rais lower doubl halv')}\w*(?: \w+){{0,2}} {_L0}"
    rf"|{_L0}[^,;.]*\d[^,;]*\b{words('to vs versus than against')}\b[^,;]*\d)",
    re.IGNORECASE,
)
WITHIN_NOISE = pattern("noise too~small indistinguishable")
ADMITS_NOISE = pattern(
    r"""noise intervals? confidence insignificant not~(?:statistically~)?significant(?:ly)? negligibl[ey]
        apparent(?:ly)? seem(?:s|ed|ing)? nominal(?:ly)? numerically"""
)
BEYOND_NOISE = re.compile(
    r"\b(?:beyond|outside|above|clear of|more than|exceed\w*) (?:the |its |their |any )?(?:\w+ )?(?:intervals?|noise)",
    re.IGNORECASE,
)
MENTIONS_L0 = re.compile(
    r"\bL0\b|\bK\b|spars|dens(?:e|er|ity)\b|\bactive (?:latents|features)|\b(?:as many|more|latents) (?:latents|fire)",
    re.IGNORECASE,
)
AT_SAME_L0 = re.compile(
    r"\b(?:at|with|for) (?:[\w'’]+ ){0,3}(?:same|equal|identical|matched|own|comparable|similar|given) "
    r"(?:L0|sparsity|density)"
    r"|\bL0 (?:is |was |being )?(?:(?:held|kept) \w+|matched|equali[sz]ed)",
    re.IGNORECASE,
)
AS_GOOD = pattern(r"indistinguishable on~par within~(?:\w+~)?noise")  # of results as a whole
SIMILARLY = pattern("similar comparable on~par constant stable")
UNCHANGED = pattern(r"identical unchanged no~(?:\w+~)?change did~not~change")
EVERY = pattern("all every each both across any always none")
SOME = pattern("some one(?!-) two(?!-) several most certain a~few")
