"""Where requirements come from."""

from __future__ import annotations

from dispatcher.conformance.results import Source

STANDARD = Source(
    name="Standard Webhooks",
    url="https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md",
)
WEBSUB = Source(name="WebSub", url="https://www.w3.org/TR/websub/")
GITHUB = Source(name="GitHub: webhook events and payloads", url="https://docs.github.com/en/webhooks")
HTTP = Source(name="RFC 9110", url="https://www.rfc-editor.org/rfc/rfc9110")
HTTP11 = Source(name="RFC 9112", url="https://www.rfc-editor.org/rfc/rfc9112")
JSON = Source(name="RFC 8259", url="https://www.rfc-editor.org/rfc/rfc8259")
TLS = Source(name="RFC 9525", url="https://www.rfc-editor.org/rfc/rfc9525")
OLD_TLS = Source(name="RFC 8996", url="https://www.rfc-editor.org/rfc/rfc8996")
MESSAGE_SIGNATURES = Source(name="RFC 9421", url="https://www.rfc-editor.org/rfc/rfc9421")
DIGEST = Source(name="RFC 9530", url="https://www.rfc-editor.org/rfc/rfc9530")
CLOUDEVENTS = Source(
    name="CloudEvents webhook specification",
    url="https://github.com/cloudevents/spec/blob/main/cloudevents/http-webhook.md",
)
_CLOUDEVENTS = "https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents"
CLOUDEVENTS_CORE = Source(name="CloudEvents 1.0.2", url=f"{_CLOUDEVENTS}/spec.md")
CLOUDEVENTS_HTTP = Source(
    name="CloudEvents 1.0.2, HTTP protocol binding", url=f"{_CLOUDEVENTS}/bindings/http-protocol-binding.md"
)
CLOUDEVENTS_JSON = Source(name="CloudEvents 1.0.2, JSON event format", url=f"{_CLOUDEVENTS}/formats/json-format.md")
SERVICESTACK = Source(name="ServiceStack.Webhooks", url="https://github.com/jezzsantos/ServiceStack.Webhooks")
OWASP_SSRF = Source(
    name="OWASP: preventing server-side request forgery",
    url="https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html",
)
CONTRACT = Source(name="docs/http-api.md")
_CHEAT_SHEETS = "https://cheatsheetseries.owasp.org/cheatsheets"

GITHUB_PRACTICES = Source(
    name="GitHub Docs, Best practices for using webhooks",
    url="https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks",
)
GITHUB_VALIDATING = Source(
    name="GitHub Docs, Validating webhook deliveries",
    url="https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries",
)
SIGNATURES = Source(
    name="RFC 9421, section 3.2", url="https://www.rfc-editor.org/rfc/rfc9421.html#name-verifying-a-signature"
)
OWASP_REST = Source(name="OWASP, REST Security Cheat Sheet", url=f"{_CHEAT_SHEETS}/REST_Security_Cheat_Sheet.html")
OWASP_ERRORS = Source(name="OWASP, Error Handling Cheat Sheet", url=f"{_CHEAT_SHEETS}/Error_Handling_Cheat_Sheet.html")
OWASP_INPUT = Source(
    name="OWASP, Input Validation Cheat Sheet", url=f"{_CHEAT_SHEETS}/Input_Validation_Cheat_Sheet.html"
)
OWASP_DENIAL = Source(
    name="OWASP, Denial of Service Cheat Sheet", url=f"{_CHEAT_SHEETS}/Denial_of_Service_Cheat_Sheet.html"
)


def rfc(number: int, section: str) -> Source:
    """A section of an RFC."""
    return Source(
        name=f"RFC {number}, section {section}",
        url=f"https://www.rfc-editor.org/rfc/rfc{number}.html#section-{section}",
    )
