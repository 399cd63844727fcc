"""Invalid traffic: declared, asked for by a bot, or served to a data centre. Each step is held against the oracle."""

from ipaddress import ip_address, ip_network
from random import Random

import pytest

from streams.core.events import Render
from streams.core.traffic import Addresses, invalid_reason
from tests.logs import MIN, T0, Desk, click, render, view

BOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36"
NETWORKS = tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.128/25", "2001:db8::/32")))


def invalid(desk):
    return {reason: count for reason, count in desk.state.invalid.items() if count}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"invalid": "sivt"}, "declared"),
        ({"user_agent": BOT}, "bot"),
        ({"ip": "192.0.2.7"}, "datacenter"),
        ({"ip": "192.0.2.7", "user_agent": BROWSER, "server_side": False}, "datacenter"),
        ({"invalid": "sivt", "user_agent": BOT, "ip": "192.0.2.7"}, "declared"),
        ({"user_agent": BOT, "ip": "192.0.2.7"}, "bot"),
        ({"invalid": "sivt", "server_side": True}, "declared"),
        ({"user_agent": BOT, "server_side": True}, "bot"),
    ],
)
def test_an_invalid_render_has_one_reason_and_is_in_the_gross_count_alone(fields, reason):
    desk = Desk(datacenters=NETWORKS)
    assert desk.give(render(**fields)) == "invalid_traffic"
    assert invalid(desk) == {reason: 1}
    assert desk.cell() == {"gross": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"user_agent": BROWSER, "ip": "203.0.113.9"},
        {"invalid": "", "user_agent": "", "ip": ""},
        {"invalid": None, "user_agent": None, "ip": None},
        {"ip": "192.0.2.7", "server_side": True},
        {"ip": "192.0.3.0"},
        {"ip": "198.51.100.127"},
        {"ip": "2001:db9::"},
    ],
)
def test_what_a_person_may_have_seen_counts(fields):
    desk = Desk(datacenters=NETWORKS)
    assert desk.give(render(**fields)) == "counted"
    assert invalid(desk) == {}


@pytest.mark.parametrize("ip", ["unknown", "192.0.2", "192.0.2.7:80", "192.0.2.0/24", "x" * 5_000])
def test_text_that_is_no_address_lies_in_no_network(ip):
    assert ip not in Addresses(NETWORKS)


def test_without_a_list_no_address_is_a_data_centres():
    assert Desk().give(render(ip="192.0.2.7")) == "counted"


def test_duplicates_of_an_invalid_render_are_duplicates_whatever_they_say_of_themselves():
    desk = Desk()
    assert desk.give_all(render(invalid="sivt"), render(invalid="sivt"), render(), render(ts=T0 + MIN)) == [
        "invalid_traffic", "duplicate", "duplicate", "duplicate",
    ]  # fmt: skip
    assert invalid(desk) == {"declared": 1}
    assert desk.cell() == {"gross": 1}


def test_views_and_clicks_of_an_invalid_render_are_orphans_before_it_and_after_it():
    desk = Desk()
    desk.give_all(view(), click(), render(user_agent=BOT))
    assert desk.outcomes("viewability") == desk.outcomes("clicks") == {"orphan": 1}
    assert desk.give_all(view(), view(), click()) == ["orphan"] * 3
    assert desk.cell() == {"gross": 1}


def test_an_invalid_render_moves_stream_time_and_costs_nothing():
    desk = Desk()
    desk.give_all(render("x"), render("y", T0 + MIN, invalid="sivt", price="1000000"))
    assert desk.state.progress["renders"].stream_time == T0 + MIN
    assert sum(cell["spend"] for cell in desk.cells().values()) == 2_500_000
    assert sum(cell["gross"] for cell in desk.cells().values()) == 2


# --- user agents ------------------------------------------------------------------------------------------------------


def of_agent(user_agent):
    return invalid_reason(Render(impression_id="x", campaign_id="c", ts=0, user_agent=user_agent), Addresses(()))


@pytest.mark.parametrize(
    "user_agent",
    [
        BOT,
        "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
        "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
        "curl/8.5.0",
        "python-requests/2.32.3",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/139.0.0.0 Safari/537.36",
    ],
)
def test_known_bots_are_known(user_agent):
    assert of_agent(user_agent) == "bot"


@pytest.mark.parametrize(
    "user_agent",
    [
        BROWSER,
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
        "Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:141.0) Gecko/20100101 Firefox/141.0",
        "Mozilla/5.0 (SMART-TV; Linux; Tizen 8.0) AppleWebKit/537.36 (KHTML, like Gecko) Version/8.0 TV Safari/537.36",
    ],
)
def test_browsers_of_people_are_no_bots(user_agent):
    assert of_agent(user_agent) is None


def test_only_the_beginning_of_a_user_agent_is_looked_at_so_that_no_sender_can_make_it_slow():
    assert of_agent("x" * 1_000 + " " + "Googlebot/2.1") == "bot"
    assert of_agent("x" * 5_000_000 + BOT) is None


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("192.0.2.0", True), ("192.0.2.255", True), ("192.0.1.255", False), ("192.0.3.0", False),
        ("198.51.100.127", False), ("198.51.100.128", True), ("0.0.0.0", False), ("255.255.255.255", False),
        ("2001:db8::", True), ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", True),
        ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", False), ("2001:db9::", False), ("::", False),
        ("::ffff:192.0.2.7", True), ("::ffff:192.0.3.7", False), ("::192.0.2.7", False),
    ],
)  # fmt: skip
def test_a_network_reaches_from_its_first_to_its_last_address(address, inside):
    assert (address in Addresses(NETWORKS)) is inside


def test_networks_in_any_order_that_overlap_touch_and_repeat_hold_what_each_of_them_holds():
    random = Random(7)

    def number():
        return random.choice([10 << 24, 2**32 - 2**12]) + random.randrange(2**12)

    for _ in range(50):
        networks = [ip_network((number(), random.randint(20, 32)), False) for _ in range(random.randint(0, 12))]
        addresses = Addresses(networks)
        assert bool(addresses) == bool(networks)
        for _ in range(200):
            address = ip_address(number())
            assert (str(address) in addresses) == any(address in network for network in networks), (address, networks)
