"""The main job, from outside: a task goes in, a signed callback comes out."""

from __future__ import annotations

import hashlib
import hmac

from standardwebhooks import Webhook

from tests.support.receiver import Receiver
from tests.support.server import Server, until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V"


def test_a_relayed_payload_arrives_signed_and_byte_for_byte(server: Server, receiver: Receiver) -> None:
    payload = b'{"a" : 1e400, "a":\t18446744073709551616, "s":"\\u00e9\\/"}'
    body = b'{"payload": %s, "callback_url": "%s/cb/s3cr3t-t0ken", "secret": "%s"}' % (
        payload,
        receiver.url.encode(),
        SECRET.encode(),
    )
    with server.client() as client:
        answer = client.post("/tasks", content=body)
        assert answer.status_code == 202, answer.text
        accepted = answer.json()
        assert answer.headers["Location"] == f"/tasks/{accepted['id']}"
        [request] = receiver.wait_for(1)
        delivery = until(
            lambda: (
                (found := client.get(f"/deliveries/{accepted['delivery_id']}").json())["state"] == "delivered" and found
            )
        )
    assert request.method == "POST"
    assert request.target == "/cb/s3cr3t-t0ken"
    assert request.body == payload
    assert request.delivery == accepted["delivery_id"]
    digest = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest()
    assert request.header("X-Hub-Signature") == f"sha256={digest}"
    Webhook(SECRET).verify(request.body, dict(request.headers))
    assert [attempt["outcome"] for attempt in delivery["attempts"]] == ["success"]
