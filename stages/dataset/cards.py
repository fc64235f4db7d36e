"""Numbers of payment cards, distinguished from order numbers, bank accounts and published test cards."""

import re
from collections.abc import Iterator, Sequence

from stdnum import iban, luhn

Span = tuple[int, int]

# A number begins here, also after an escape in JSON that could not be read.
START = r"(?:(?<!\w)|(?<=\\[bfnrt])|(?<=\\u[0-9a-fA-F]{4}))"
# Adjacent groups of digits: a card's number may be some of them.
_GROUPS = re.compile(START + r"\d++(?:[ .\u00a0-]\d++)*(?!\w)")
_GROUP = re.compile(r"\d+")
HINT = re.compile(r"\d(?:[ .\u00a0-]?\d){12}")
# A card's number is not written in smaller groups; tables and dates are.
_SMALLEST_GROUP, _MOST_GROUPS, _MOST_DIGITS = 3, 6, 19
# First digits and lengths that nearly all cards have: Visa, Mastercard, American Express, Diners, JCB, Discover.
_COMMON = re.compile(
    r"4\d{15}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}"
    r"|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}"
)
# The others', Maestro's above all, are every tenth number that begins with 5 or 6: they count where a card is
# spoken of.
_RARE = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3[0689]\d{12}|(?:3[05689]|5[0678]|6\d)\d{10,17}"
)
# Numbers that payment services publish for tests, as do half the examples in the world.
_PUBLISHED = frozenset(
    re.findall(
        r"\d+",
        """
        4111111111111111 4242424242424242 4012888888881881 4000056655665556 4000000000000002 4000000000009995
        4000002500003155 4000000000003220 4000000000000077 4222222222222 4444333322221111 4917610000000000
        4005519200000004 4009348888881881 4012000033330026 4500600000000061 4646464646464644 4988438843884305
        5555555555554444 5105105105105100 5200828282828210 5454545454545454 5500005555555559 5500000000000004
        5424000000000015 5111111111111118 2223003122003222 2222400070000005 2223000048400011 2222420000001113
        378282246310005 371449635398431 378734493671000 370000000000002 340000000000009 343434343434343
        6011111111111117 6011000990139424 6011000000000004 6011000000000012 6011601160116611 6445644564456445
        30569309025904 38520000023237 36227206271667 3056930009020004 30000000000004 36700102000000
        3530111333300000 3566002020360505 3569990010095841 3528000700000000 6200000000000005 6250941006528599
        6304000000000000 6759649826438453 6771798021000008 5019717010103742 6799990100000000019
        """,
    )
)
# How far from a number the words are that say what it is.
_BEFORE, _AFTER = 48, 32
_CARD_WORD = re.compile(
    r"(?<![^\W_])(?:cards?|visa|master ?card|maestro|amex|american express|discover|diners|jcb|union ?pay|cv[vc]2?"
    r"|expir\w*|exp|pan|(?:kredit|bank|giro)?karten?|cartes?|carta|tarjetas?|cart(?:ão|ao|ões)|kaart|kort|karty?"
    r"|карт\w*)(?![^\W_])|カード|信用卡|银行卡|卡号|卡片|카드|بطاق|कार्ड",
    re.IGNORECASE,
)
# The number of a card, whatever else is spoken of.
_CARD_NUMBER = re.compile(
    r"cards? ?(?:number|no\b|nr\b|#)|(?:credit|debit|payment|bank) card(?: is|:)|kartennummer|numéro de (?:la )?carte"
    r"|número de (?:la )?tarjeta|cv[vc]2?\b|卡号|カード番号",
    re.IGNORECASE,
)
_OTHER_WORD = re.compile(
    r"(?<![^\W_])(?:orders?|bookings?|reservations?|confirmation|invoices?|tracking|parcels?|shipments?|packages?"
    r"|waybill|tickets?|cases?|references?|ref|customer|client|account|acct|iban|bic|serial|s/n|imei|isbn|issn|ean|upc"
    r"|gtin|barcode|transactions?|transfer|ids?|uuid|guid|sku|member(?:ship)?|meter|polic(?:y|ies)|licen[cs]e|vat"
    r"|passport|message|user|tweet|channel|snowflake|timestamp|nonce|hash|build|version|model|article|part|item|product"
    r"|bestell\w*|auftrag\w*|rechnung\w*|sendung\w*|konto\w*|kunden\w*|vorgang\w*|commande|facture|suivi|compte|dossier"
    r"|colis|pedido|factura|reserva|cuenta|seguimiento|ordine|fattura|prenotazione|conto|fatura|conta|rastreio"
    r"|bestelling|factuur|zamówieni\w*|заказ\w*|сч[её]т\w*|номер заказа)(?![^\W_])"
    r"|订单|单号|快递|账号|注文|追跡|予約|口座|주문|송장",
    re.IGNORECASE,
)
_EXPIRY = re.compile(r"[\s,;|/-]{1,3}(?:0[1-9]|1[0-2])\s?/\s?(?:20)?[2-4]\d(?!\d)")
# In an address, a query, or behind the sign of a number.
_NAMED_BY_SIGN = re.compile(r"(?:[/=#&?_№]|(?<![a-z])n[o°º]\.?) ?$", re.IGNORECASE)
# A sentence ends here; an abbreviation such as "no." is shorter.
_SENTENCE_END = re.compile(r"\w{4,}[.!?]\s|[。！？]|\n\s*\n")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)")


def find_card(text: str, start: int = 0) -> Span | None:
    """The first number of a payment card from `start` on.

    Its length, first digits and check digit (Luhn, ISO/IEC 7812-1) are those of a card. It is no published test card
    and no part of an account's number (IBAN), and nothing around it says that it is another number. A length and a
    beginning that are rare among cards only count where a card is spoken of.
    """
    for span, digits in _numbers(text, start):
        if digits in _PUBLISHED or not luhn.is_valid(digits) or _in_account(text, span):
            continue
        if _is_meant(text, span, digits):
            return span
    return None


def _numbers(text: str, start: int) -> Iterator[tuple[Span, str]]:
    for run in _GROUPS.finditer(text, start):
        groups = [group.span() for group in _GROUP.finditer(text, *run.span())]
        for at in range(len(groups)):
            yield from _from(text, groups, at)


def _from(text: str, groups: Sequence[Span], at: int) -> Iterator[tuple[Span, str]]:
    """Numbers of a card's form that begin with one of the groups: other numbers may be before and after them."""
    begin, digits = groups[at][0], ""
    for first, last in groups[at : at + _MOST_GROUPS]:
        if not _SMALLEST_GROUP <= last - first <= _MOST_DIGITS - len(digits):
            return
        digits += text[first:last]
        # The digits behind a decimal point are none.
        fraction = at and text[begin - 1] == "." and "." not in text[begin:last]
        if not fraction and _RARE.fullmatch(digits):
            yield (begin, last), digits


def _in_account(text: str, span: Span) -> bool:
    """Whether a number is part of an IBAN (ISO 13616)."""
    around = _IBAN.finditer(text, max(0, span[0] - _BEFORE), span[1] + _AFTER)
    return any(found.start() < span[0] < found.end() and _begins_account(found[0]) for found in around)


def _begins_account(text: str) -> bool:
    """Whether an IBAN begins here; what follows it may look like more of it."""
    whole = text.replace(" ", "")
    return any(iban.is_valid(whole[:length], check_country=False) for length in range(15, min(34, len(whole)) + 1))


def _is_meant(text: str, span: Span, digits: str) -> bool:
    """Whether what is around a number speaks of a card, or of nothing where most such numbers are cards'."""
    before, after = text[max(0, span[0] - _BEFORE) : span[0]], text[span[1] : span[1] + _AFTER]
    sentence = _SENTENCE_END.split(before)[-1]
    if _EXPIRY.match(after) or _CARD_NUMBER.search(sentence) or _CARD_NUMBER.search(_SENTENCE_END.split(after)[0]):
        return True
    card, other = _last(_CARD_WORD, sentence), _last(_OTHER_WORD, sentence)
    if card < 0 and other < 0:
        if _NAMED_BY_SIGN.search(before):
            return False
        rest = _SENTENCE_END.split(after)[0]
        card, other = -_first(_CARD_WORD, rest), -_first(_OTHER_WORD, rest)
    if card == other:
        return bool(_COMMON.fullmatch(digits))
    return card > other


def _last(pattern: re.Pattern[str], text: str) -> int:
    """Where the last match ends; -1 where there is none."""
    return max((found.end() for found in pattern.finditer(text)), default=-1)


def _first(pattern: re.Pattern[str], text: str) -> int:
    """Where the first match begins; beyond the text where there is none."""
    found = pattern.search(text)
    return found.start() if found else _AFTER + 1
