"""Drives the service with the official SDK, `call2me` from PyPI, unmodified."""

import os
import sys

from call2me import Call2Me, Call2MeError

url = sys.argv[1]


def assert_rejected(status, call):
    """Asserts that the call fails with this status. Returns the server's message."""
    try:
        call()
    except Call2MeError as error:
        assert error.status_code == status, error
        assert isinstance(error.detail, str) and error.detail, error
        return error.detail
    raise AssertionError(f"expected {status}")


with Call2Me(api_key=os.environ["ADMIN_KEY"], base_url=url) as client:
    # Agents.
    agent = client.agents.create("Front desk", language="en-US", system_prompt="Be brief.")
    agent_id = agent["agent_id"]
    assert agent["agent_name"] == "Front desk"
    assert agent["response_engine"]["llm_model"] == "openrouter/auto"
    assert client.agents.get(agent_id) == agent
    assert client.agents.list(limit=10)["agents"] == [agent]
    assert client.agents.update(agent_id, agent_name="Reception")["agent_name"] == "Reception"
    assert "agent_name" in assert_rejected(422, lambda: client.agents.create(""))
    assert_rejected(404, lambda: client.agents.get("agent_01jd0zt8q7f7qvs4p2k6x3m9ab"))

    # Calls.
    call = client.calls.create(agent_id, "+14155550100", topic="Reminder", metadata={"order": 7})
    assert call["agent_id"] == agent_id and call["metadata"] == {"order": 7}
    assert client.calls.list(agent_id=agent_id)["total"] == 1
    assert client.calls.get(call["call_id"])["topic"] == "Reminder"
    assert client.calls.end(call["call_id"])["call_status"] == "ended"
    assert_rejected(422, lambda: client.calls.create(agent_id, "not a number"))

    # Knowledge bases.
    base = client.knowledge_bases.create(
        "Hours", texts=[{"title": "Hours", "text": "9 to 18"}], urls=["https://acme.example"])
    assert base["name"] == "Hours" and base["sources_count"] == 2
    assert client.knowledge_bases.list()["knowledge_bases"] == [base]
    assert client.knowledge_bases.get(base["id"]) == base
    assert client.knowledge_bases.delete(base["id"]) is True

    # Campaigns.
    campaign = client.campaigns.create("Spring", agent_id, "+14155550199", concurrency=2)
    assert campaign["concurrency"] == 2
    renamed = client.campaigns.update(campaign["campaign_id"], name="Summer")
    assert renamed["name"] == "Summer"
    assert client.campaigns.get(campaign["campaign_id"]) == renamed
    assert client.campaigns.list()["total"] == 1
    assert client.campaigns.delete(campaign["campaign_id"]) is True

    # API keys.
    key = client.api_keys.create("from-the-sdk", scope="read-only")
    assert key["key"].startswith("sk_call2me_live_")
    assert "from-the-sdk" in [k["name"] for k in client.api_keys.list()["api_keys"]]
    with Call2Me(api_key=key["key"], base_url=url) as fresh:
        assert fresh.agents.list()["total"] == 1
        assert client.api_keys.revoke(key["id"]) is True
        assert_rejected(401, fresh.agents.list)
    assert_rejected(422, lambda: client.api_keys.create("forever", expires_in=60))

    # Wallet.
    assert client.wallet.balance()["balance_usd"] == 0
    assert client.wallet.transactions()["transactions"] == []

    # Users and branding.
    me = client.users.me()
    assert me["email"] == "owner@acme.example"
    assert client.users.update(full_name="Dana M.", timezone="Europe/Berlin")["timezone"]
    assert client.users.update_branding(brand_name="Acme Voice")["brand_name"] == "Acme Voice"
    assert client.users.branding() == {"brand_name": "Acme Voice"}
    assert client.users.tenant_members()["members"][0]["role"] == "owner"

    assert client.agents.delete(agent_id) is True

with Call2Me(api_key=os.environ["READER_KEY"], base_url=url) as reader:
    assert reader.agents.list()["total"] == 0
    assert "write" in assert_rejected(403, lambda: reader.agents.create("No"))
    assert_rejected(403, reader.wallet.balance)

with Call2Me(api_key="sk_call2me_live_nonsense", base_url=url) as unauthenticated:
    assert_rejected(401, unauthenticated.agents.list)
