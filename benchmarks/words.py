"""Common English words by part of speech, most frequent first, and the shapes of sentences that hold them."""

NOUNS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information back parent face others
level office door health person art war history party result change morning reason research girl guy moment air teacher
force education foot boy age policy music market sense nation plan college interest death experience effect use class
control care field development role effort rate heart drug show leader light voice wife police mind price report
decision son view relationship town road arm difference value building action season society tax director position
player record
paper space ground form event official matter center couple site project activity star table need court oil situation
cost industry figure street image phone data picture practice piece land product doctor wall patient worker news test
movie north love support technology step baby computer type attention film tree source hair window culture chance
brother energy period course summer hospital plant opportunity term letter condition choice rule daughter south husband
floor campaign material population call economy medicine floor hotel machine engine bicycle kitchen garden river
mountain library museum airport recipe password invoice contract keyboard printer battery camera database server
software algorithm neighbour restaurant temperature vegetable insurance mortgage passenger refrigerator bureaucracy
photosynthesis archaeologist microphone thermostat subscription documentary earthquake submarine cathedral orchestra
"""
VERBS = """
said made took came saw got gave found told became left felt put brought began kept held wrote stood heard let meant met
ran paid sat spoke lay led read grew lost fell sent built understood drew broke spent cut rose drove bought wore chose
wanted asked seemed tried called needed turned looked used worked played moved liked lived believed happened included
continued changed followed stopped created watched offered remembered considered appeared served expected stayed reached
killed remained suggested raised passed required reported decided pulled returned explained hoped developed carried
received agreed supported described produced covered caused reduced established replaced repaired measured installed
negotiated documented translated synchronised underestimated
"""
BASE_VERBS = """
be have do make get take see find give use go know say think come want look help keep show try call move play run turn
start bring write sit stand lose pay meet include continue set learn change lead understand watch follow stop create
speak read spend grow open walk win teach offer remember consider buy serve send build stay fall cut reach replace clean
fix cook install repair cancel compare choose train measure calculate renew translate configure upgrade
"""
ADJECTIVES = """
other new good high old great big small large young different long little important political bad white real best right
social only public sure low early able human local late hard major better economic strong possible whole free military
true federal international full special easy clear recent certain personal open red difficult available likely short
single medical current wrong private past foreign fine common poor natural significant similar hot dead central happy
serious ready simple left physical general environmental financial blue democratic dark various entire close legal
religious cold final main green nice huge popular traditional cultural quiet narrow cheap reliable portable wooden
electric vegetarian waterproof unexpected comfortable transparent nineteenth-century second-hand long-term
"""
ADVERBS = """
so up out just now then more also here well only very even back there down still in as too when never really most on why
about over again where right off always today all far long away yet often ever however almost later much once least ago
together around already enough both maybe actually probably home pretty quickly finally carefully suddenly eventually
approximately
"""
PREPOSITIONS = """
of in to for with on at from by about into through over after between under against during without before around behind
near along across beyond throughout despite
"""
NAMES = """
John Mary David Sarah Michael Anna James Laura Robert Maria Thomas Elena Ahmed Priya Kowalski Nakamura O'Brien Fernandez
Washington Einstein Mozart Schneider Okonkwo Vasquez
"""
PLACES = """
London America Europe China Paris Germany Africa California India Japan Chicago Canada Berlin Texas Mexico Vienna Boston
Istanbul Edinburgh Singapore Copenhagen Reykjavik Ljubljana Marrakesh
"""
TERMS = """
authentication reconfiguration thermodynamics misunderstandings self-employment touchscreens spreadsheets breadcrumbs
electrolytes firmware cholesterol dishwashers kitchenware subcontractors reimbursements wheelchairs bookkeeping
biodiversity e-mails checklists anaesthesia sunscreen dehumidifiers timestamps hyperlinks usernames co-ownership
antihistamines gearboxes screwdrivers sourdough marinades lawnmowers bathtubs thunderstorms crossword backpacks
cryptocurrency micro-services webhooks embeddings tokenisers latency throughput rollback middleware kilowatt-hours
stakeholders sub-tenants paperwork shareholders leaseholds post-war pre-industrial deforestation urbanisation
landlord's children's doctor's company's yesterday's week's nobody's government's
"""
DETS = """
the a this his their her our that my each some no every its any another
"""
PRONS = """
it he they she we you I everyone somebody nobody
"""
CONJS = """
and but because so while although when since if or
"""
MODALS = """
will would can could should may might must
"""
ASKS = """
how what why when where who which
"""

WORDS: dict[str, tuple[str, ...]] = {
    "noun": tuple(NOUNS.split()),
    "verb": tuple(VERBS.split()),
    "do": tuple(BASE_VERBS.split()),
    "adj": tuple(ADJECTIVES.split()),
    "adv": tuple(ADVERBS.split()),
    "prep": tuple(PREPOSITIONS.split()),
    "term": tuple(TERMS.split()),
    "name": tuple(NAMES.split()),
    "place": tuple(PLACES.split()),
    "det": tuple(DETS.split()),
    "pron": tuple(PRONS.split()),
    "conj": tuple(CONJS.split()),
    "modal": tuple(MODALS.split()),
    "ask": tuple(ASKS.split()),
}

OPENINGS = (
    "In the end,",
    "For the first time,",
    "At the same time,",
    "According to the report,",
    "However,",
    "Last year,",
    "On the other hand,",
    "As far as we know,",
    "In 1987,",
    "By the way,",
    "Nevertheless,",
)

TEMPLATES = tuple(
    tuple(line.split())
    for line in """
det noun prep det noun verb adv
det adj term verb det noun prep place
pron verb det noun prep det adj noun
name verb det term conj pron verb det adj noun
how to do det adj term prep det noun
ask is the adj noun prep det noun
best adj term prep noun and term
pron modal do det noun prep number noun, conj det noun verb adv
det noun prep place verb number term prep det adj noun
the noun that name verb prep place was adj and adj
pron verb adv that det noun modal do det noun
adj term prep adj noun
ask modal pron do det adj noun prep place
there were number noun prep det noun, conj pron verb det noun
name and name verb prep det noun prep det noun
det noun of det noun is not adj, conj pron modal do det noun
when det noun verb, det adj term verb prep det noun
noun, term and noun prep det adj term
it was det adj noun conj pron verb it adv
is det term adv adj than det noun prep place
pron have never verb det adj noun prep det noun
the number adj noun verb det term, which verb det noun prep term
""".strip().splitlines()
)
